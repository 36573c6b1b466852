"""Aligned-MTL: gradients turned and scaled to be orthogonal and equally long.

    a = sqrt(l_min) V L^(-1/2) V^T p,    G = V L V^T,    p: preference, 1 / T each unless given

Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, algorithm 1, with the smallest non-zero
eigenvalue, so that the update is as long as the weakest component. Departures: the authors' code sums (p = 1); with no gradient
at all, a = p.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mtl.balancing.contract import State
from mtl.balancing.eigen import eigen, significant
from mtl.balancing.gramian import restrict, rounding
from mtl.balancing.preference import PreferringBalancer

Scale = Literal["min", "median", "mean"]


@dataclass(frozen=True)
class AlignedMTL(PreferringBalancer):
    """Aligned-MTL: turn and scale the gradients to be orthogonal and equally long (Senushkin et al. 2023).

    Args:
        scale: the eigenvalue that all components get: the smallest non-zero one (min, the paper), the median or the mean (its code).
    """

    scale: Scale = "min"
    needs = "gramian"
    heads = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in get_args(Scale):
            raise ValueError(f"balancer.scale must be one of {', '.join(get_args(Scale))}, got {self.scale}")

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        square = restrict(gramian, active)
        preference = self.preferences(active)
        values, vectors = eigen(square)
        nonzero = significant(values, rounding(losses))
        there = torch.where(nonzero, values, torch.nan)
        if self.scale == "min":
            scale = torch.where(nonzero, values, torch.inf).amin(-1, keepdim=True)
        else:
            scale = (there.nanmedian(-1, keepdim=True).values) if self.scale == "median" else there.nanmean(-1, keepdim=True)
        factors = torch.where(nonzero, (scale / values).sqrt(), 0)
        weights = (vectors @ (factors[..., None] * (vectors.mT @ preference[..., None]))).squeeze(-1)
        return (torch.where(nonzero.any(-1, keepdim=True), weights, preference) * active).to(losses.dtype), state
