"""FedDF (Lin, Kong, Stich & Jaggi, NeurIPS 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning").

After the aggregation of a round, the server trains the mean x on images u without labels:

    t(u) = mean_k s(x_k; u)         x <- x - rate * grad sum over the subtasks of T^2 KL(sigmoid(t / T) | sigmoid(s(x; u) / T))

s are decision scores. For each subtask the mean is over the clients that trained it and whose updates arrived; a subtask that none of
them trained is left out. The server already has the clients' models, so that nothing more is sent. Where clients train several widths or
architectures (`views`), each client's own model scores. Of several widths, the whole model is trained; of several architectures, all are,
on the sum of their losses, since they share the heads.

Departures from the paper: the ensemble scores once a round rather than for each batch, with the same result, since images are not
augmented. The server trains without dropout. Its optimiser is the clients' (SGD, with their scale of the heads' learning rate, without
weight decay), with a learning rate that falls to zero as a cosine, instead of Adam. The number of steps is fixed, where the paper stops
early on labelled images.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.profiler import record_function

from mtl.balancing.contract import Balancer
from mtl.base.seeding import derive_seed, generator
from mtl.base.types import ImageData, Params
from mtl.data.client_batches import LocalWork, plan_batches
from mtl.data.ragged import Ragged
from mtl.edge.distil import soft_binary
from mtl.federation.algorithms.contract import Optimizer
from mtl.federation.clients.contract import Block
from mtl.federation.collectors import Collector
from mtl.federation.objective import MAX_ACTIVATIONS, Objective, images_at_once
from mtl.federation.orders import Orders
from mtl.federation.server import RunContext, Server, mean
from mtl.models.cnn import ImageShape
from mtl.models.multi_task_model import MultiTaskModel

MAX_PIXELS = 2**20  # pixels that the models of many clients read at once


@dataclass(frozen=True)
class DistilEnsemble:
    """The options of FedDF's server step.

    Args:
        images: where the images without labels come from, None for noise.
        num_images: number of these images.
        steps: the server's steps in a round.
        batch_size: images in a step.
        rate: learning rate of the server's steps.
        temperature: T, by which scores are divided before they are compared.

    Raises:
        ValueError: an option is out of its range.
    """

    images: ImageData | None = None
    num_images: int = 500
    steps: int = 50
    batch_size: int = 64
    rate: float = 0.01
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"server.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"server.{name} must be > 0, got {getattr(self, name)}")

    def bind(self, context: RunContext) -> "Ensemble":
        """See `StepOptions`."""
        return Ensemble(
            self,
            [level.model for level in context.views.levels],
            replace(context.objective, distil=None),
            context.optimizer,
            self.unlabelled(context.image_shape, context.pixels, seed=context.seed),
            seed=context.seed,
            students=context.views.students,
        )

    def unlabelled(self, image_shape: ImageShape, pixels: torch.dtype, *, seed: int) -> Tensor:
        """Return the images without labels, [U, c, H, W], of the shape and type of the run's stored images.

        They are drawn from `images`. Without `images` they are noise: uniform bytes, or normal numbers where the run's images are floats.

        Args:
            image_shape: (c, height, width) of the run's images.
            pixels: their type.
            seed: seed of the draw.

        Raises:
            ValueError: `images` have another shape or type, or are too few.
        """
        draw = generator(seed, "unlabelled images")
        if self.images is None:
            shape = (self.num_images, *image_shape)
            if pixels.is_floating_point:
                return torch.randn(shape, generator=draw).to(pixels)
            return torch.randint(0, 256, shape, generator=draw, dtype=pixels)
        images = self.images.images
        if tuple(images.shape[1:]) != tuple(image_shape) or images.dtype != pixels:
            raise ValueError(
                f"server.images must be {tuple(image_shape)} of {pixels}, like those of the run, got {tuple(images.shape[1:])} of "
                f"{images.dtype} of {self.images.name}"
            )
        if self.num_images > len(images):
            raise ValueError(
                f"server.num_images must be in [1, {len(images)}], the number of images of {self.images.name}, got {self.num_images}"
            )
        return images[torch.randperm(len(images), generator=draw)[: self.num_images]]


class Ensemble:
    """The server step of FedDF: the clients' models teach the server's; see `ServerStep`.

    Args:
        options: of the step.
        models: of each width, the whole model first, or of each architecture.
        objective: prepares and scores the images.
        optimizer: the clients' optimiser, which makes the server's steps.
        images: [U, c, H, W], as stored.
        seed: seed of the run.
        students: number of the models, from the first, that are trained.
    """

    def __init__(
        self,
        options: DistilEnsemble,
        models: Sequence[MultiTaskModel],
        objective: Objective,
        optimizer: Optimizer,
        images: Tensor,
        *,
        seed: int,
        students: int = 1,
    ) -> None:
        self.options, self.images, self.seed, self.students = options, images, seed, students
        self.optimizer = optimizer.without_decay()
        plain = replace(objective, mirror=False)
        self._scores = [_Scores(copy.deepcopy(model), plain).eval() for model in models]

    @property
    def data(self) -> tuple[Tensor, ...]:
        """See `ServerStep`."""
        return (self.images,)

    def collect(self, orders: Orders) -> "Votes":
        """See `ServerStep`."""
        return Votes(self, orders)

    def apply(self, params: Params, orders: Orders, collected: Collector) -> Params:
        """See `ServerStep`."""
        assert isinstance(collected, Votes)
        if not orders.cohort.clients:
            return params
        counts = orders.cohort.tasks.to(collected.votes.device).sum(0)
        return self.distil(params, collected.votes, counts, round=orders.cohort.round, frozen=orders.frozen)

    @torch.no_grad()
    @record_function("mtl/ensemble")
    def votes(self, trained: Block, tasks: Tensor) -> Tensor:
        """Return the scores [U, T] of the images, each summed over the clients of a block that train the subtask, bool [K, T]."""
        scores = self._scores[trained.view]
        scores.to(tasks.device)
        params = scores.select(trained.slots["params"])
        # The batch must not depend on the number of clients: normalised by batch statistics, a score depends on its batch.
        part = images_at_once(scores.model, min(self.options.batch_size, len(self.images)))
        activations = scores.model.activation_numel * part
        size = max(min(MAX_PIXELS // (part * self.images[0].numel()), MAX_ACTIVATIONS // activations), 1)
        like = next(iter(params.values()))
        total = like.new_zeros(len(self.images), tasks.shape[1])
        for start in range(0, len(self.images), part):
            images = self.images[start : start + part].to(tasks.device)
            for clients in _blocks(len(trained.clients), size):
                scored = _client_scores(scores, params, clients, images)
                total[start : start + part] += torch.where(tasks[clients, None], scored, 0).sum(0)
        return total

    @record_function("mtl/distil")
    def distil(self, params: Params, votes: Tensor, counts: Tensor, *, round: int, frozen: frozenset[str]) -> Params:
        """Return the server's parameters after training on the ensemble's scores; `params` are not changed.

        Args:
            params: parameters of the whole model.
            votes: [U, T], scores summed over the clients that train the subtask.
            counts: [T], the number of these clients.
            round: the round, counted from 0.
            frozen: names of the parameters that are not trained.
        """
        options, students = self.options, [scores.to(votes.device) for scores in self._scores[: self.students]]
        targets, known = votes / counts.clamp_min(1), counts > 0
        moved = {name: value.detach().clone() for name, value in params.items() if name not in frozen}
        state = self.optimizer.init(moved)
        work = LocalWork(batch_size=options.batch_size, steps=options.steps)
        all_images = Ragged.of([torch.arange(len(self.images))])
        plan = plan_batches(all_images, [0], work, seed=derive_seed(self.seed, "ensemble"), round=round)
        for step, (index, valid) in enumerate(zip(plan.index, plan.valid, strict=True)):
            images, valid = self.images[index].to(votes.device), valid.to(votes.device)
            with torch.enable_grad():
                leaves = {name: value.requires_grad_() for name, value in moved.items()}
                current = params | leaves
                counted = known & valid[:, None]
                teacher_scores = targets[index.to(votes.device)]
                loss = votes.new_zeros(())
                for scores in students:
                    student_scores = functional_call(scores, scores.select(current), (images,)).to(targets.dtype)
                    loss = loss + soft_binary(student_scores, teacher_scores, counted, valid, options.temperature).sum()
                grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            moved = {name: value.detach() for name, value in moved.items()}
            factor = (1 + math.cos(math.pi * step / options.steps)) / 2
            rate = torch.tensor(options.rate * factor, dtype=votes.dtype, device=votes.device)
            moved, state = self.optimizer.step(moved, dict(zip(leaves, grads, strict=True)), state, rate)
        return params | moved


class Votes:
    """Collects the ensemble's scores of the images, [U, T], summed over the clients that train the subtask; see `Collector`."""

    def __init__(self, ensemble: Ensemble, orders: Orders) -> None:
        self._ensemble, self._tasks = ensemble, orders.cohort.tasks
        self.votes = orders.like.new_zeros(len(ensemble.images), orders.cohort.tasks.shape[1])
        self.sums = {"votes": self.votes}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        self.votes += self._ensemble.votes(block, self._tasks[places].to(self.votes.device))


def feddf(
    weighting: str = "samples",
    balancer: Balancer | None = None,
    images: ImageData | None = None,
    num_images: int = 500,
    steps: int = 50,
    batch_size: int = 64,
    rate: float = 0.01,
    temperature: float = 1.0,
) -> Server:
    """FedDF: the weighted mean, then the server learns from the clients' models on images without labels (Lin et al. 2020).

    Args:
        weighting: what a client counts by: samples (its training images) or clients (all the same)
        balancer: a balancer without state that combines the clients' updates, None for their mean
        images: where the images without labels come from, a member of `data` (+data@server.images=NAME), null for noise
        num_images: number of these images
        steps: steps of the server's training in a round
        batch_size: images in a step
        rate: learning rate of the server's training
        temperature: T, by which scores are divided before they are compared
    """
    options = DistilEnsemble(images, num_images, steps, batch_size, rate, temperature)
    return replace(mean(weighting, balancer), options=(options,))


class _Scores(nn.Module):
    """The decision scores of stored images as a module, so that `functional_call` can replace the model's parameters."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def select(self, params: Params) -> Params:
        """Return the parameters that this model has, by the names that `functional_call` expects."""
        return {f"model.{name}": params[name] for name, _ in self.model.named_parameters()}

    def forward(self, images: Tensor) -> Tensor:
        """[N, c, H, W] -> [N, T]."""
        return self.objective.decide(self.model, self.objective.features(self.model, images))


def _client_scores(scores: _Scores, params: Params, clients: slice, images: Tensor) -> Tensor:
    """Return the scores [K, N, T] by the models of some clients; `params` are stacked over all clients of the block."""
    selected = {name: value[clients] for name, value in params.items()}
    result: Tensor
    if clients.stop - clients.start == 1:
        result = functional_call(scores, {name: value[0] for name, value in selected.items()}, (images,))[None]
    else:
        result = vmap(lambda client_params: functional_call(scores, client_params, (images,)))(selected)
    return result


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
