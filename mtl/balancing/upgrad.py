"""UPGrad: the mean of the gradients, each projected onto the dual cone of all, where no task gets worse.

    weights = sum_i project(p_i e_i)        p_i: preference, 1 / T unless given

Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, arXiv 2406.16232. Weights are at least p_i each and
sum to 1 where nothing conflicts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import State
from mtl.balancing.dual_cone import project_to_dual_cone
from mtl.balancing.gramian import rounding
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class UPGrad(PreferringBalancer):
    """UPGrad: project each gradient to where no task gets worse, then take the mean (Quinton & Rey 2024)."""

    needs = "gramian"
    heads = False

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        preferences = torch.diag_embed(self.preferences(active))
        return project_to_dual_cone(preferences, gramian, active, rounding(losses)).sum(-2).to(losses.dtype), state
