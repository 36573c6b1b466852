"""MoCo: the shortest vector in the hull of smoothed gradients, approached by one projected step per step of training.

    y_i <- y_i - beta / k^beta_decay (y_i - L_i g_i / |g_i|)
    w <- project to the simplex (w - gamma / k^gamma_decay (Y Y^T + rho I) w)        d = sum_i w_i y_i        at step k = 1, 2, ...

Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach", ICLR 2023, algorithm 1,
with the gradients scaled to the losses as in the authors' code. Departure: projection, as in the paper; their code takes a
softmax of the same values, which keeps the weights close to equal. Weights sum to 1 over the active tasks. y is as large as all
tasks' gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing import active as over
from mtl.balancing.contract import Balancer, State, weighted_sum
from mtl.balancing.gramian import gramian_of


@dataclass(frozen=True)
class MoCo(Balancer):
    """MoCo: MGDA on smoothed gradients, with one small step of the weights per training step (Fernando et al. 2023).

    Args:
        beta: rate of the smoothed gradients.
        beta_decay: power of the step number by which beta falls.
        gamma: step size of the weights.
        gamma_decay: power of the step number by which gamma falls.
        rho: pulls the weights together.
    """

    beta: float = 0.5
    beta_decay: float = 0.5
    gamma: float = 0.1
    gamma_decay: float = 0.5
    rho: float = 0.0
    needs = "gradients"
    levels = ("parameters",)
    heads = False

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"balancer.beta must be in (0, 1], got {self.beta}")
        for name in ("beta_decay", "gamma", "gamma_decay", "rho"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"balancer.{name} must be >= 0, got {getattr(self, name)}")

    def init(self, like: Tensor) -> State:
        """State: `smooth` [..., T, P], `weights` [..., T] and `step` [..., 1], the steps done."""
        tasks = like[..., 0]
        return {
            "smooth": torch.zeros_like(like),
            "weights": torch.full_like(tasks, 1 / tasks.shape[-1]),
            "step": torch.zeros_like(tasks[..., :1]),
        }

    def combine(
        self, state: State, losses: Tensor, gradients: Tensor, active: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """See `Balancer`."""
        gradients = over.only_active(gradients, active[..., None])
        step = state["step"] + active.any(-1, keepdim=True)
        often = step.clamp_min(1)
        length = gradients.norm(dim=-1)
        factor = torch.where(length > 0, over.only_active(losses, active) / length, 0)
        rate = (self.beta / often**self.beta_decay)[..., None]
        newest = state["smooth"] + rate * (factor[..., None] * gradients - state["smooth"])
        smooth = torch.where(active[..., None], newest, state["smooth"])
        taken = over.only_active(smooth, active[..., None])
        before = over.share(state["weights"], active)
        pull = (gramian_of(taken) @ before[..., None].double()).squeeze(-1).to(before.dtype) + self.rho * before
        weights = project_to_simplex(before - self.gamma / often**self.gamma_decay * pull, active)
        total = over.only_active(state["weights"], active).sum(-1, keepdim=True)
        return (
            weighted_sum(weights, taken),
            weights,
            {"smooth": smooth, "weights": torch.where(active, weights * total, state["weights"]), "step": step},
        )


def project_to_simplex(values: Tensor, active: Tensor) -> Tensor:
    """The nearest weights >= 0 that sum to 1 over the active tasks and are 0 elsewhere, [..., T].

    Args:
        values: [..., T].
        active: bool [..., T], the tasks with a known label.
    """
    falling = torch.where(active, values, -torch.inf).sort(-1, descending=True).values
    total = torch.where(falling.isfinite(), falling, 0).cumsum(-1)
    rank = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    level = (total - 1) / rank
    last = (falling > level).sum(-1, keepdim=True).clamp_min(1) - 1
    return over.only_active((values - level.gather(-1, last)).clamp_min(0), active)
