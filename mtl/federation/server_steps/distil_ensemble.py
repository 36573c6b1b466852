"""FedDF (Lin, Kong, Stich & Jaggi, NeurIPS 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning").

After the average x of a round the server goes on from x, on images u that have no labels:

    t(u) = mean_k s(x_k; u)         x <- x - rate * grad sum over the subtasks of T^2 KL(sigmoid(t / T) | sigmoid(s(x; u) / T))

s are the decision scores; subtask by subtask the mean is over the clients that came back and train it, and a subtask that none of them
trains is left out. The server has the clients' models already, and so nothing more is sent. Where clients train several widths or
architectures (`views`), each scores with its own; of widths the whole model learns, of architectures all do, with the sum of their
losses, since they share the heads.

Departures: the scores of the ensemble are computed once a round rather than for each batch, which is the same, as images are not augmented;
dropout rests while the server learns; its steps are the clients' (SGD, with their scale of the heads' learning rate, without weight decay)
at a rate that falls to zero as a cosine, where the paper has Adam, and their number is fixed, where the paper stops early on labelled
images.
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
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.clients.contract import Block
from mtl.federation.collectors import Collector
from mtl.federation.objective import NUMBERS, Objective, images_at_once
from mtl.federation.orders import Orders
from mtl.federation.server import Server, Surroundings, fedavg
from mtl.models.cnn import ImageShape
from mtl.models.multi_task_model import MultiTaskModel

PIXELS = 2**20  # that many clients' models look at at once


@dataclass(frozen=True)
class DistilEnsemble:
    """images: where the images without labels come from, null for noise; num_images: number of these images; steps: steps of the server's
    learning in a round; batch_size: images in a step; rate: learning rate of the server's learning; temperature: T, by which scores are
    divided before they are compared.
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

    def bind(self, around: Surroundings) -> "Ensemble":
        """See `StepOptions`."""
        return Ensemble(
            self,
            [level.model for level in around.views.levels],
            replace(around.objective, distil=None),
            around.algorithm,
            self.unlabelled(around.image_shape, around.pixels, seed=around.seed),
            seed=around.seed,
            students=around.views.students,
        )

    def unlabelled(self, image_shape: ImageShape, pixels: torch.dtype, *, seed: int) -> Tensor:
        """Stored images [U, c, H, W] like those of the run: a draw of `images`, or noise: uniform bytes, or normal numbers where images are
        not pictures. Raises ValueError where they are not like them.
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
                f"server.num_images must be in [1, {len(images)}], what {self.images.name} has, got {self.num_images}"
            )
        return images[torch.randperm(len(images), generator=draw)[: self.num_images]]


class Ensemble:
    """The clients' models as a teacher of the server's, on `images` [U, c, H, W] as stored.

    models: of each level of width, the whole one first, or of each architecture; students: how many of them, from the first, learn;
    algorithm: the clients'.
    """

    def __init__(
        self,
        options: DistilEnsemble,
        models: Sequence[MultiTaskModel],
        objective: Objective,
        algorithm: ClientAlgorithm,
        images: Tensor,
        *,
        seed: int,
        students: int = 1,
    ) -> None:
        self.options, self.images, self.seed, self.students = options, images, seed, students
        self.algorithm = algorithm.without_decay()
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
        """Scores [U, T] summed over the clients, zero where a client does not train the subtask. tasks: bool [K, T]."""
        scores = self._scores[trained.view]
        scores.to(tasks.device)
        params = scores.own(trained.slots["params"])
        # Not by the clients beside one: where images are normalised by their batch, a score depends on it.
        part = images_at_once(scores.model, min(self.options.batch_size, len(self.images)))
        size = max(min(PIXELS // (part * self.images[0].numel()), NUMBERS // (scores.model.activation_numel * part)), 1)
        like = next(iter(params.values()))
        total = like.new_zeros(len(self.images), tasks.shape[1])
        for start in range(0, len(self.images), part):
            images = self.images[start : start + part].to(tasks.device)
            for few in _blocks(len(trained.clients), size):
                total[start : start + part] += torch.where(tasks[few, None], _of_each(scores, params, few, images), 0).sum(0)
        return total

    @record_function("mtl/distil")
    def distil(self, params: Params, votes: Tensor, counts: Tensor, *, round: int, frozen: frozenset[str]) -> Params:
        """The server's model after it has learned from the ensemble. params: of the whole model, left as they are; votes: [U, T], summed
        over all clients; counts: [T], how many they are; frozen: the parameters that stay.
        """
        options, students = self.options, [scores.to(votes.device) for scores in self._scores[: self.students]]
        targets, known = votes / counts.clamp_min(1), counts > 0
        moved = {name: value.detach().clone() for name, value in params.items() if name not in frozen}
        state = self.algorithm.init(moved)
        work = LocalWork(batch_size=options.batch_size, steps=options.steps)
        everything = Ragged.of([torch.arange(len(self.images))])
        plan = plan_batches(everything, [0], work, seed=derive_seed(self.seed, "ensemble"), round=round)
        for step, (index, valid) in enumerate(zip(plan.index, plan.valid, strict=True)):
            images, valid = self.images[index].to(votes.device), valid.to(votes.device)
            with torch.enable_grad():
                leaves = {name: value.requires_grad_() for name, value in moved.items()}
                given = params | leaves
                counted = known & valid[:, None]
                wanted = targets[index.to(votes.device)]
                loss = votes.new_zeros(())
                for scores in students:
                    found = functional_call(scores, scores.own(given), (images,)).to(targets.dtype)
                    loss = loss + soft_binary(found, wanted, counted, valid, options.temperature).sum()
                grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            moved = {name: value.detach() for name, value in moved.items()}
            factor = (1 + math.cos(math.pi * step / options.steps)) / 2
            rate = torch.tensor(options.rate * factor, dtype=votes.dtype, device=votes.device)
            moved, state = self.algorithm.step(moved, dict(zip(leaves, grads, strict=True)), state, rate)
        return params | moved


class Votes:
    """The clients' scores of the ensemble's images, [U, T], summed over those that train the subtask."""

    def __init__(self, ensemble: Ensemble, orders: Orders) -> None:
        self._ensemble, self._tasks = ensemble, orders.cohort.tasks
        self.votes = orders.like.new_zeros(len(ensemble.images), orders.cohort.tasks.shape[1])
        self.sums = {"votes": self.votes}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        self.votes += self._ensemble.votes(block, self._tasks[places].to(self.votes.device))


def feddf(  # noqa: PLR0913 the options of a member
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    weighting: str = "samples",
    balancer: Balancer | None = None,
    images: ImageData | None = None,
    num_images: int = 500,
    steps: int = 50,
    batch_size: int = 64,
    rate: float = 0.01,
    temperature: float = 1.0,
) -> Server:
    """FedDF: FedAvg, then the server learns from the clients' models on images without labels (Lin et al. 2020).

    learning_rate: factor of the mean update; momentum: momentum over the rounds; weighting: what a client counts by: samples (its
    training images) or clients (all the same); balancer: a balancer that remembers nothing, over the clients' updates, None for their
    mean; images: where the images without labels come from, a member of `data` (+data@server.images=NAME), null for noise;
    num_images: number of these images; steps: steps of the server's learning in a round; batch_size: images in a step; rate: learning rate
    of the server's learning; temperature: T, by which scores are divided before they are compared.
    """
    options = DistilEnsemble(images, num_images, steps, batch_size, rate, temperature)
    return replace(fedavg(learning_rate, momentum, weighting, balancer), options=(options,))


class _Scores(nn.Module):
    """The decision scores of stored images as a module, so that the model's parameters can be swapped for a call."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def own(self, params: Params) -> Params:
        """Those that the model has, as a call of this module takes them."""
        return {f"model.{name}": params[name] for name, _ in self.model.named_parameters()}

    def forward(self, images: Tensor) -> Tensor:
        return self.objective.decide(self.model, self.objective.features(self.model, images))


def _of_each(scores: _Scores, params: Params, few: slice, images: Tensor) -> Tensor:
    """By the models of some clients, [K, N, T]. params: stacked over all."""
    own = {name: value[few] for name, value in params.items()}
    found: Tensor
    if few.stop - few.start == 1:
        found = functional_call(scores, {name: value[0] for name, value in own.items()}, (images,))[None]
    else:
        found = vmap(lambda one: functional_call(scores, one, (images,)))(own)
    return found


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
