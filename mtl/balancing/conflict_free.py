"""ConFIG: an update with the same cosine to every gradient.

    d ~ U^+ p,    |d| = sum_i g_i . d / |d|        U = D^-1 J, the gradients' unit vectors;  p: preference, equal unless given

Liu et al., "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", ICLR 2025, equation 2.

With C = U U^T the update is a combination of the gradients, U^+ p = U^T C^+ p, so the Gramian is enough: a_i ~ (C^+ p)_i / |g_i|.
Dependent gradients that leave no such direction give the nearest one, as in the paper. A task without a gradient has weight 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import State
from mtl.balancing.eigen import apply_pseudo_inverse
from mtl.balancing.gramian import cosines, restrict, rounding
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class ConFIG(PreferringBalancer):
    """ConFIG: an update with the same cosine to every gradient (Liu et al. 2025)."""

    needs = "gramian"
    heads = False

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        cosine, norm = cosines(restrict(gramian, active))
        projections = self.preferences(active) * (norm > 0)
        raw = apply_pseudo_inverse(cosine, projections, rounding(losses))
        along = (cosine @ raw[..., None]).squeeze(-1)
        square = (raw * along).sum(-1, keepdim=True)
        length = (norm * along).sum(-1, keepdim=True)
        # Opposite gradients have no common direction: what is left of one is rounding.
        some = ~(square <= rounding(losses) * (projections**2).sum(-1, keepdim=True))
        weights = torch.where((norm > 0) & some, length * raw / (square * norm), 0)
        return weights.to(losses.dtype), state
