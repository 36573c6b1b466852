"""CR-MOGM: the weights of another method, smoothed over steps.

    w <- decay w + (1 - decay) w^        w^: the weights of the method at this step; w starts at the first of them

It takes out the bias of weights that come from the same batch as the gradients. Zhou et al., "On the Convergence of Stochastic
Multi-Objective Gradient Manipulation and Beyond", NeurIPS 2022, algorithm 1 (there decay may grow over the steps; here it is constant, as
in torchjd). Weights sum to what the method's sum to. A task's weight does not change while it is not active. The method must give task
weights: one that works on gradients has none to smooth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import only_active
from mtl.balancing.contract import Balancer, Needs, State

OF = "of."


@dataclass(frozen=True)
class CRMOGM(Balancer):
    """CR-MOGM: the weights of another method, smoothed over steps (Zhou et al. 2022).

    Args:
        of: the balancer whose weights are smoothed.
        decay: how much of the last weights stays.
    """

    of: Balancer
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"balancer.decay must be in [0, 1), got {self.decay}")
        if self.of.needs == "gradients":
            raise ValueError(f"balancer.of must be one that gives task weights, and {type(self.of).__name__} works on gradients")

    @property
    def needs(self) -> Needs:
        """See `Balancer`."""
        return self.of.needs

    @property
    def heads(self) -> bool:  # type: ignore[override]
        """See `Balancer`."""
        return self.of.heads

    @property
    def observes(self) -> bool:  # type: ignore[override]
        """See `Balancer`."""
        return self.of.observes

    def for_run(self, *, steps_per_round: float, num_rounds: float) -> "CRMOGM":
        """See `Balancer`."""
        return CRMOGM(self.of.for_run(steps_per_round=steps_per_round, num_rounds=num_rounds), self.decay)

    def init(self, like: Tensor) -> State:
        """State: `weights` and `started`, whether a task has had its first step, [..., T], and the state of `of`."""
        return self._with_prefix(self.of.init(like)) | {"weights": torch.zeros_like(like), "started": torch.zeros_like(like)}

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        """See `Balancer`."""
        return self.of.draw_shape(num_tasks, num_coordinates)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        newest, state_of_method = self.of.weigh(self._state_of_method(state), losses, gramian, active, draw)
        before = torch.where(state["started"] > 0, state["weights"], newest)
        weights = torch.where(active, torch.lerp(newest, before, self.decay), state["weights"])
        started = torch.where(active, 1, state["started"])
        return only_active(weights, active), state | self._with_prefix(state_of_method) | {"weights": weights, "started": started}

    def observe(self, state: State, losses: Tensor, active: Tensor) -> State:
        """See `Balancer`."""
        return state | self._with_prefix(self.of.observe(self._state_of_method(state), losses, active))

    def _state_of_method(self, state: State) -> State:
        return {name.removeprefix(OF): value for name, value in state.items() if name.startswith(OF)}

    def _with_prefix(self, state_of_method: State) -> State:
        return {OF + name: value for name, value in state_of_method.items()}
