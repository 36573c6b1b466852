"""FedDyn (Acar et al., ICLR 2021): each client's objective is changed so that all of them end where the sum of the objectives does.

    client   min f_i(y) - <l_i, y> + alpha/2 |y - x|^2       g - l_i + alpha (y - x)       l_i <- l_i - alpha (y - x)
    server   h <- h - alpha sum_S p_i (y_i - x)               x <- mean_S y_i - h / alpha

l_i and h start at zero and have the names of the parameters that are sent. p_i is the share of client i in the weight of all N clients, of
head t in that of those that train subtask t: 1/N in the paper. Departures from the authors' code: alpha is the same for all clients, and
samples enter by p_i; weight decay is the optimiser's, outside of the proximal term.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mtl.base import tree
from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Aggregator, Update
from mtl.federation.aggregators.weighted_mean import RunningMean, TotalWeight, WeightedMean
from mtl.federation.algorithms.algorithm import Algorithm, ServerAlgorithm
from mtl.federation.algorithms.contract import RECEIVED, ClientAlgorithm, Clock, Optimizer
from mtl.federation.algorithms.fedprox import pull
from mtl.federation.layout import Layout

if TYPE_CHECKING:
    from mtl.federation.server import RunContext

DUAL, MEAN_DUAL = "dual", "mean_dual"


@dataclass(frozen=True)
class Dynamic(ClientAlgorithm):
    """The client half of FedDyn.

    Args:
        alpha: weight of the proximal term, > 0.

    Raises:
        ValueError: `alpha` is not positive.
    """

    alpha: float
    reads = (RECEIVED, DUAL)
    keeps = (DUAL,)

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"algorithm.alpha must be > 0, got {self.alpha}")

    def first(self, params: Params) -> Slots:
        """See `ClientAlgorithm`."""
        return {DUAL: tree.zeros_like(params)}

    def correct(self, grads: Params, slots: Slots) -> Params:
        """See `ClientAlgorithm`."""
        pulled = pull(grads, slots["params"], slots[RECEIVED], self.alpha)
        if pulled:
            torch._foreach_sub_(list(pulled.values()), [slots[DUAL][name] for name in pulled])
        return grads | pulled

    def final(self, slots: Slots, state: Slots, start: Slots, clock: Clock, optimizer: Optimizer) -> tuple[Slots, Slots]:
        """See `ClientAlgorithm`."""
        before = start[DUAL]
        after = {name: before[name] - self.alpha * (slots["params"][name] - value) for name, value in start[RECEIVED].items()}
        return {DUAL: before | after}, {}


@dataclass(frozen=True)
class MeanDualOptions(ServerAlgorithm):
    """The server half of FedDyn before the run is known."""

    alpha: float
    needs_mean = True

    def bind(self, context: "RunContext", aggregator: Aggregator) -> "MeanDual":
        """See `ServerAlgorithm`."""
        assert isinstance(aggregator, WeightedMean)
        return MeanDual(self.alpha, aggregator.total(context.sizes, context.assignment))


@dataclass(frozen=True)
class MeanDual(ServerAlgorithm):
    """The server half of FedDyn in one run.

    Attributes:
        alpha: weight of the proximal term.
        total: weight of all clients.
    """

    alpha: float
    total: TotalWeight

    def init(self, params: Params, layout: Layout) -> Slots:
        """See `ServerAlgorithm`."""
        return {"params": params, MEAN_DUAL: tree.zeros_like(layout.sent(params))}

    @torch.no_grad()
    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """See `ServerAlgorithm`."""
        assert isinstance(update, RunningMean)
        duals, params = dict(state[MEAN_DUAL]), dict(state["params"])
        for name, mean in update.value().items():
            duals[name] = duals[name] - self.alpha * update.sums[name] / self.total.of(name, mean)
            moved = travelling[name] + mean - duals[name] / self.alpha
            params[name] = update.keep_untrained(name, travelling[name], moved)
        return {"params": params, MEAN_DUAL: duals}


def feddyn(alpha: float = 0.01) -> Algorithm:
    """FedDyn: clients' objectives change until all agree with the global one (Acar et al. 2021).

    Args:
        alpha: weight of the pull towards the received model
    """
    return Algorithm(MeanDualOptions(alpha), Dynamic(alpha))
