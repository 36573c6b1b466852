"""DualProj: the mean gradient, projected onto the dual cone of the gradients, where no task gets worse.

    weights = project(p)        p: preference, 1 / T each unless given

Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, equation 11, applied to tasks. Weights are
at least p_i each and sum to 1 where the mean conflicts with no task.
"""

from dataclasses import dataclass

from torch import Tensor

from mtl.balancing.contract import State
from mtl.balancing.dual_cone import project_to_dual_cone
from mtl.balancing.gramian import rounding
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class DualProj(PreferringBalancer):
    """DualProj: project the mean gradient to where no task gets worse (Lopez-Paz & Ranzato 2017)."""

    needs = "gramian"
    heads = False

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        preference = self.preferences(active)[..., None, :]
        return project_to_dual_cone(preference, gramian, active, rounding(losses)).squeeze(-2).to(losses.dtype), state
