"""FedAwS (Yu, Rawat, Menon & Kumar, ICML 2020, "Federated Learning with Only Positive Labels"): the server spreads the heads.

A client that has only positives moves its images and its head towards each other. Under FedAvg all images and all heads then end in one
direction. Here the server, after each aggregation, makes a gradient step on the spread-out regulariser

    R(W) = sum_c sum_{d in N(c)} max(0, v - |w_c - w_d|)^2        N(c): the k heads nearest to c

over the heads as unit vectors. The clients' loss of the paper, max(0, .9 - cos)^2, is `loss=hinge` squared with margin .9 on cosine heads.
Departure from the paper: a head keeps its length, which has no effect in cosine heads; only its direction changes.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.balancing.contract import Balancer
from mtl.base.types import Params
from mtl.federation.collectors import Collector, NullCollector
from mtl.federation.orders import Orders
from mtl.federation.server import RunContext, Server, mean

WEIGHT = "heads.weight"


@dataclass(frozen=True)
class SpreadHeads:
    """The server step of FedAwS; see `ServerStep` and `StepOptions`.

    Args:
        spread: step size R, in the paper ten learning rates.
        margin: v, the distance from which two heads are not pushed apart, in (0, 2]; 1.41 is a right angle.
        nearest: k, each head is pushed from its k nearest ones, None for all.

    Raises:
        ValueError: an option is out of its range.
    """

    spread: float = 1.0
    margin: float = 1.41
    nearest: int | None = 10
    data = ()

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise ValueError(f"server.spread must be > 0, got {self.spread}")
        if not 0 < self.margin <= 2:
            raise ValueError(f"server.margin must be in (0, 2], got {self.margin}")
        if self.nearest is not None and self.nearest < 1:
            raise ValueError(f"server.nearest must be null or >= 1, got {self.nearest}")

    def bind(self, context: RunContext) -> "SpreadHeads":
        """See `StepOptions`. Raises ValueError where the heads have no `weight`, as heads of your own may not."""
        if WEIGHT not in context.layout.sent(context.params):
            raise ValueError("server=fedaws needs heads that the clients send: heads=cosine or linear, and keep=nothing")
        return self

    def collect(self, orders: Orders) -> Collector:
        """See `ServerStep`."""
        return NullCollector()

    @torch.no_grad()
    def apply(self, params: Params, orders: Orders, collected: Collector) -> Params:
        """See `ServerStep`."""
        return params | {WEIGHT: spread_out(params[WEIGHT], rate=self.spread, margin=self.margin, nearest=self.nearest)}


def fedaws(
    weighting: str = "samples",
    balancer: Balancer | None = None,
    spread: float = 1.0,
    margin: float = 1.41,
    nearest: int | None = 10,
) -> Server:
    """FedAwS: the weighted mean, and the server keeps the heads apart, for clients that have positives alone (Yu et al. 2020).

    Args:
        weighting: what a client counts by: samples (its training images) or clients (all the same)
        balancer: a balancer without state that combines the clients' updates, None for their mean
        spread: step size R of moving the heads apart, in the paper ten learning rates
        margin: v, the distance from which heads count as apart, between 0 and 2, where 1.41 asks for a right angle
        nearest: k, each head is kept from its k nearest ones, null for all
    """
    return replace(mean(weighting, balancer), options=(SpreadHeads(spread, margin, nearest),))


def spread_out(heads: Tensor, *, rate: float, margin: float, nearest: int | None = None) -> Tensor:
    """Return the heads after one gradient step on the regulariser; their lengths do not change.

    Equal heads have a gradient of zero, and stay equal.

    Args:
        heads: [T, h].
        rate: step size.
        margin: v, the distance from which two heads are not pushed apart.
        nearest: k, each head is pushed from its k nearest ones, None for all.
    """
    length = heads.norm(dim=-1, keepdim=True)
    with torch.enable_grad():
        units = F.normalize(heads.detach(), dim=-1).requires_grad_()
        (slope,) = torch.autograd.grad(spread_loss(units, margin=margin, nearest=nearest), units)
    turned: Tensor = F.normalize(units.detach() - rate * slope, dim=-1) * length
    return turned


def spread_loss(units: Tensor, *, margin: float, nearest: int | None = None) -> Tensor:
    """Return the regulariser R of unit vectors [T, h], scalar."""
    count = len(units) - 1
    distances = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist")
    others = distances[~torch.eye(len(units), dtype=torch.bool, device=units.device)].view(len(units), count)
    close = others.topk(min(nearest or count, count), largest=False).values
    loss: Tensor = (margin - close).clamp_min(0).square().sum()
    return loss
