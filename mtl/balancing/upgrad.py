"""UPGrad: the mean of the gradients, each projected onto the dual cone of all, where no task gets worse.

    weights = sum_i project(e_i / T)

Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, arXiv 2406.16232. Weights are at least 1 / T each and
sum to 1 where nothing conflicts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import count
from mtl.balancing.contract import Balancer, State
from mtl.balancing.dual_cone import project_to_dual_cone


@dataclass(frozen=True)
class UPGrad(Balancer):
    needs = "gramian"
    heads = False

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        assert gramian is not None
        wanted = torch.diag_embed(active / count(active).double())
        return project_to_dual_cone(wanted, gramian, active).sum(-2).to(losses.dtype), state
