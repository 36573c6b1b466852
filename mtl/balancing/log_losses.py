"""GLS and SI: descend the logarithms of the losses, so that a task's unit does not matter.

    GLS    exp(sum_i p_i ln L_i)    w_i = p_i exp(sum_j p_j ln L_j) / L_i
    SI     sum_i T p_i ln L_i       w_i = T p_i / L_i

Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning", CVPR
workshops 2019; SI, scale-invariant linear scalarisation, is a baseline of Navon et al., "Multi-Task Learning as a Bargaining
Game", ICML 2022.

p: preference, 1 / T each unless given. GLS by the mean of the logarithms: forty losses of .05 multiply to 0 in float32. Losses must be
>= 0, and 1e-8 is added to them. A task whose loss is 0 (hinge and asymmetric losses reach it) is solved: it has no gradient, gets no
weight, and the others get what they would get without it. The weights sum to anything.
"""

from dataclasses import dataclass

from torch import Tensor

from mtl.balancing.active import SMALLEST, count, only_active, unsolved
from mtl.balancing.contract import State
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class GLS(PreferringBalancer):
    """GLS: descend the geometric mean of the losses, so that a task's unit does not matter (Chennupati et al. 2019)."""

    needs = "losses"
    heads = True

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        there = unsolved(losses, active)
        positive = only_active(losses, there) + SMALLEST
        preference = self.preferences(there).to(losses.dtype)
        mean = (preference * positive.log()).sum(-1, keepdim=True).exp()
        return preference * mean / positive, state


@dataclass(frozen=True)
class SI(PreferringBalancer):
    """SI: descend the sum of the log-losses, so that a task's unit does not matter (Navon et al. 2022)."""

    needs = "losses"
    heads = True

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        there = unsolved(losses, active)
        preference = self.preferences(there).to(losses.dtype) * count(there)
        return preference / (only_active(losses, there) + SMALLEST), state
