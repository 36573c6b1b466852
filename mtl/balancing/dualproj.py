"""DualProj: the mean gradient, projected onto the dual cone of the gradients, where no task gets worse.

    weights = project((1 / T, ..., 1 / T))

Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, equation 11, applied to tasks. Weights are
at least 1 / T each and sum to 1 where the mean conflicts with no task.
"""

from dataclasses import dataclass

from torch import Tensor

from mtl.balancing.active import count
from mtl.balancing.contract import Balancer, State
from mtl.balancing.dual_cone import project_to_dual_cone


@dataclass(frozen=True)
class DualProj(Balancer):
    needs = "gramian"
    heads = False

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        assert gramian is not None
        wanted = (active / count(active).double())[..., None, :]
        return project_to_dual_cone(wanted, gramian, active).squeeze(-2).to(losses.dtype), state
