"""IMTL-G: an update with the same projection onto every gradient.

    a ~ D^-1 C^+ p,    sum a = 1        C: the cosines of the gradients, D: their lengths, p: preference, the projections' ratios

Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021; p is equal unless given. For dependent gradients by the pseudo-inverse, like
Quinton and Rey (2024, arXiv 2406.16232), but of the unit gradients: theirs, of the gradients, climbs one of two opposite ones that are not
equally long. Weights may be negative, so a head that gets them may ascend. They are 0 where they sum to 0 or nearly so (within the rounding
of the type they are applied in), as for opposite gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import State
from mtl.balancing.eigen import apply_pseudo_inverse
from mtl.balancing.gramian import cosines, restrict, rounding
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class IMTLG(PreferringBalancer):
    """IMTL-G: an update with the same projection onto every gradient (Liu et al. 2021)."""

    needs = "gramian"
    heads = False

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        cosine, norm = cosines(restrict(gramian, active))
        projections = self.preferences(active) * (norm > 0)
        unit = apply_pseudo_inverse(cosine, projections, rounding(losses))
        raw = torch.where(norm > 0, unit / norm, 0)
        total = raw.sum(-1, keepdim=True)
        none = total.abs() <= rounding(losses) * raw.abs().sum(-1, keepdim=True)
        none = none | ((projections * unit).sum(-1, keepdim=True) <= rounding(losses) * (projections**2).sum(-1, keepdim=True))
        return torch.where(none, 0, raw / torch.where(none, 1, total)).to(losses.dtype), state
