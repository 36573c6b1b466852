"""GLS and SI: descend the logarithms of the losses, so that a task's unit does not matter.

    GLS    exp(mean_i ln L_i)    w_i = exp(mean_j ln L_j) / (T L_i)
    SI     sum_i ln L_i          w_i = 1 / L_i

Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning", CVPR
workshops 2019; SI, scale- invariant linear scalarisation, is a baseline of Navon et al., "Multi-Task Learning as a Bargaining
Game", ICML 2022.

GLS by the mean of the logarithms: forty losses of .05 multiply to 0 in float32. Losses must be >= 0; 1e-8 is added inside the
logarithm, so that weights stay finite at zero loss. The weights sum to anything.
"""

from dataclasses import dataclass

from torch import Tensor

from mtl.balancing.active import count, mean, only_active
from mtl.balancing.contract import Balancer, State

SMALLEST = 1e-8


@dataclass(frozen=True)
class GLS(Balancer):
    needs = "losses"
    heads = True

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        positive = only_active(losses, active).clamp_min(0) + SMALLEST
        return active * mean(positive.log(), active).exp() / (count(active) * positive), state


@dataclass(frozen=True)
class SI(Balancer):
    needs = "losses"
    heads = True

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        return active / (only_active(losses, active).clamp_min(0) + SMALLEST), state
