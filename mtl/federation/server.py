"""FedAvg at the server (McMahan et al., AISTATS 2017) with a server learning rate and momentum (FedAvgM, Hsu et al. 2019).

    D = sum_k w_k (x_k - x) / sum_k w_k          v <- momentum v + D          x <- x + learning_rate v

over the clients k that came back. The shared part is averaged over all of them; head t over exactly those that trained subtask t, and
a head that nobody trained stays where it is, momentum included. Where clients train models of several widths (`heterofl`), the same goes
for each coordinate.

With a balancer the clients are its tasks and their updates of the shared part its gradients (FedHCA2, Lu et al., CVPR 2024, does so with
CAGrad): D = sum_k a_k K w_k (x_k - x) / sum_j |a_j|, w_k summing to 1, so that equal weights give FedAvg. This keeps K updates at once.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl import tree
from mtl.balancing.contract import Balancer
from mtl.models.hard_sharing import is_head
from mtl.seeding import client_keys, random_uniform
from mtl.types import Params

Weighting = Literal["samples", "clients"]


@dataclass(frozen=True)
class FedAvg:
    """FedAvg: the weighted mean of the clients' updates (McMahan et al. 2017).

    learning_rate: factor of the mean update; momentum: momentum over the rounds; weighting: what a client counts by: samples (its
    training images) or clients (all the same); balancer: a balancer that remembers nothing, over the clients' updates, None for their
    mean.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    weighting: str = "samples"
    balancer: Balancer | None = None

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"server.weighting must be one of {', '.join(get_args(Weighting))}, got {self.weighting}")
        if not self.learning_rate > 0:
            raise ValueError(f"server.learning_rate must be > 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"server.momentum must be in [0, 1), got {self.momentum}")
        if getattr(self.balancer, "preference", None) is not None:
            raise ValueError("server.balancer.preference must be null: cohorts change, and it is one number per task")
        if self.balancer is not None and (self.balancer.observes or self.balancer.init(torch.zeros(2, 2))):
            name = type(self.balancer).__name__
            raise ValueError(f"server.balancer must be one that remembers nothing, as cohorts change; {name} does")

    def init(self, params: Params) -> Params:
        """The server's own state: its momentum."""
        return tree.zeros_like(params) if self.momentum else {}

    def weight(self, num_images: int) -> float:
        """The weight of a client's update."""
        return float(num_images) if self.weighting == "samples" else 1.0

    def collect(self, params: Params, count: int) -> Params:
        """Room for the clients' updates of the shared part, [K, ...] each, where they are to be compared; else nothing."""
        if self.balancer is None:
            return {}
        return {name: value.new_zeros(count, *value.shape) for name, value in params.items() if not is_head(name)}

    @torch.no_grad()
    @record_function("mtl/server")
    def combine(self, updates: Params, losses: Tensor, weights: Tensor, *, seed: int, round: int) -> Params:
        """updates: of `collect`; losses: [K], each client's per image; weights: [K], of their updates. Returns D for the shared part."""
        assert self.balancer is not None
        flat = torch.cat([value.reshape(len(value), -1) for value in updates.values()], 1)
        gradients = flat * (weights * len(weights) / weights.sum())[:, None]
        shape = self.balancer.draw_shape(*gradients.shape)
        key = client_keys(seed, "server balancer", round, [0])[0].to(flat.device)
        draw = random_uniform(key, torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=flat.device)).view(shape)
        active = torch.ones(len(weights), dtype=torch.bool, device=flat.device)
        direction, shares, _ = self.balancer.combine({}, losses, gradients, active, draw.to(flat))
        # Opposite updates may have no common direction: no weights, and the shared part stays.
        total = shares.abs().sum()
        parts = torch.where(total > 0, direction / torch.where(total > 0, total, 1), direction).split(
            [value[0].numel() for value in updates.values()]
        )
        return {name: part.view(value.shape[1:]) for (name, value), part in zip(updates.items(), parts, strict=True)}

    @torch.no_grad()
    @record_function("mtl/server")
    def aggregate(self, params: Params, mean: "RunningMean", state: Params) -> tuple[Params, Params]:
        """The next global parameters and state; what was given is left as it is."""
        direction = mean.value()
        if self.momentum:
            # What rests in this round is in the state alone.
            moved = {name: self.momentum * state[name] + value for name, value in direction.items()}
            state = state | {name: mean.keep_untrained(name, state[name], value) for name, value in moved.items()}
            direction = {name: mean.keep_untrained(name, torch.zeros_like(state[name]), state[name]) for name in direction}
        return {name: value + self.learning_rate * direction[name] for name, value in params.items()}, state


class RunningMean:
    """The weighted mean of the clients' updates, summed as they come: memory does not grow with the cohort.

    weights: [K], and tasks: bool [K, T], the subtasks that each trains, of all clients that came back, on whichever rank; covered: of the
    parameters that some train in part, the weight of those that train each coordinate, float64 of the parameter's shape.
    """

    def __init__(self, like: Params, weights: Tensor, tasks: Tensor, covered: Params | None = None) -> None:
        device = next(iter(like.values())).device if like else weights.device
        self.sums = tree.zeros_like(like)
        self._covered: Params = covered or {}
        self._replaced: Params = {}
        self._weight = weights.double().sum().to(device)
        self._task_weight = (weights.double()[:, None] * tasks).sum(0).to(device)

    @torch.no_grad()
    @record_function("mtl/sum of updates")
    def add(self, update: Params, weights: Tensor, tasks: Tensor, index: Params | None = None) -> None:
        """update: stacked [K, ...]; weights: [K]; tasks: bool [K, T]; rows of other heads in an update do not count. index: where the
        coordinates of the parameters lie that the clients train in part, see `widths.Level`.
        """
        for name, total in self.sums.items():
            if name not in update:  # of another architecture than these clients'
                continue
            value, weight = update[name], weights.to(total)
            if is_head(name):
                counted = (weight[:, None] * tasks).view(*tasks.shape, *[1] * (value.dim() - 2))
                # Not by a product alone: a head that is not trained may hold anything.
                total += torch.where(counted > 0, value * counted, 0).sum(0)
            elif index and name in index:
                total.view(-1)[index[name]] += torch.tensordot(weight, value, 1)
            elif len(value) == 1:
                total += value[0] * weight[0]
            else:
                total += torch.tensordot(weight, value, 1)

    def replace(self, direction: Params) -> None:
        """Take these in place of the means of the same names."""
        self._replaced = direction

    def value(self) -> Params:
        """The mean, zero where nobody contributed."""
        means = {name: total / self._denominator(name, total) for name, total in self.sums.items()}
        return means | self._replaced

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """`after` where some client trained it, `before` elsewhere."""
        return torch.where(self._weight_of(name, after) > 0, after, before)

    def _denominator(self, name: str, like: Tensor) -> Tensor:
        weight = self._weight_of(name, like)
        return torch.where(weight > 0, weight, 1).to(like.dtype)

    def _weight_of(self, name: str, like: Tensor) -> Tensor:
        """Of the clients that trained it, of a shape that broadcasts against `like`."""
        if name in self._covered:
            return self._covered[name]
        return tree.rows(self._task_weight, like) if is_head(name) else self._weight
