"""FAMO: decrease every task's log-loss at the same pace, learning from the losses alone.

    c sum_i z_i ln(L_i - b_i)    z = softmax(s)    w_i = c z_i / (L_i - b_i),    c = 1 / sum_j z_j / (L_j - b_j)
    after the step, on the same batch:    Adam on s along  (dz / ds)^T (ln(L - b) - ln(L' - b))  + decay s

Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, algorithm 2. `observe` takes the losses L' after the step.
Without it the weights do not learn.

Weights sum to 1 over the active tasks. 1e-8 is added to L - b, which must not be negative; a task at its bound is solved: it has no weight
and its logit does not change. Departures: the moments of Adam and its bias correction are per task and do not change while a task is not
active; no clipping of the model's gradient at 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import SMALLEST, only_active, share, softmax, unsolved
from mtl.balancing.contract import Balancer, State

MEAN_DECAY, SQUARE_DECAY, ADAM_SMALLEST = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class FAMO(Balancer):
    """FAMO: decrease all log-losses at the same pace, learning from the losses alone (Liu et al. 2023).

    Args:
        learning_rate: step size of the logits s.
        decay: pulls the logits to 0.
        lower_bounds: the lowest loss b that each task can reach, one number per task; empty for 0.
    """

    learning_rate: float = 0.025
    decay: float = 1e-3
    lower_bounds: tuple[float, ...] = ()
    needs = "losses"
    heads = True
    observes = True

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"balancer.learning_rate must be > 0, got {self.learning_rate}")
        if not self.decay >= 0:
            raise ValueError(f"balancer.decay must be >= 0, got {self.decay}")

    def init(self, like: Tensor) -> State:
        """State: s and its Adam, `logits`, `mean`, `square`, `step`; `logs`, ln(L - b) of the last batch; `bounds`; [..., T] each."""
        if self.lower_bounds and len(self.lower_bounds) != like.shape[-1]:
            expected = f"none or one per task, {like.shape[-1]}"
            raise ValueError(f"balancer.lower_bounds must be {expected}, got {len(self.lower_bounds)}")
        zero = torch.zeros_like(like)
        state = {name: zero.clone() for name in ("logits", "mean", "square", "step", "logs")}
        bounds = torch.tensor(self.lower_bounds, dtype=like.dtype, device=like.device) if self.lower_bounds else zero
        return state | {"bounds": bounds.expand(like.shape).clone()}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        above = height(losses, state["bounds"], active)
        there = unsolved(above - SMALLEST, active)
        weights = share(softmax(state["logits"], there) / above, there)
        return weights, state | {"logs": torch.where(active, above.log(), state["logs"])}

    def observe(self, state: State, losses: Tensor, active: Tensor) -> State:
        """See `Balancer`; `losses` and `active` are of the batch that `weigh` saw last."""
        active = unsolved(state["logs"].exp() - SMALLEST, active)  # of those that had weight
        fallen = only_active(state["logs"] - height(losses, state["bounds"], active).log(), active)
        z = softmax(state["logits"], active)
        slope = z * (fallen - (z * fallen).sum(-1, keepdim=True)) + self.decay * state["logits"]
        step = state["step"] + 1
        mean = torch.lerp(slope, state["mean"], MEAN_DECAY)
        square = torch.lerp(slope**2, state["square"], SQUARE_DECAY)
        unit = (square / (1 - SQUARE_DECAY**step)).sqrt() + ADAM_SMALLEST
        logits = state["logits"] - self.learning_rate * mean / (1 - MEAN_DECAY**step) / unit
        learned = {"logits": logits, "mean": mean, "square": square, "step": step}
        return state | {name: torch.where(active, value, state[name]) for name, value in learned.items()}


def height(losses: Tensor, bounds: Tensor, active: Tensor) -> Tensor:
    """How far the losses of the active tasks are above their bounds, [..., T], positive.

    Args:
        losses: [..., T].
        bounds: [..., T].
        active: bool [..., T], the tasks with a known label.
    """
    return only_active(losses - bounds, active).clamp_min(0) + SMALLEST
