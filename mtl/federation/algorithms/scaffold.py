"""SCAFFOLD (Karimireddy et al., ICML 2020): control variates take the drift out of the clients' steps.

    y <- y - rate (g + c - c_i)                                            on client i, K_i steps from x
    I:  c_i+ = gradient of f_i at x        II:  c_i+ = c_i - c + (x - y) / (rate a_K)
    x <- x + learning_rate mean_S (y - x)          c <- c + sum_S p_i (c_i+ - c_i)

All variates start at zero. c and c_i have the names of the parameters that are sent.

- p_i: the share of client i in the weight of all N clients, 1/N in the paper. These weights, not those of the mean, set the point that is
  reached, so they are those of `server.weighting`. Head t has its c over the clients that train subtask t; of the others it reads nothing.
- a_K is K in the paper, and with momentum rho in the client's steps (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho): the correction enters
  before the momentum, and the rate is that of each parameter in the round (`reach`).
- Option I takes the mean of the gradients at x over the round's batches, at the cost of a second gradient in each step, and sends
  c_i+ - c_i. With option II the server knows it without a message: it is -c - (y - x) / (rate a_K).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Aggregator, Update
from mtl.federation.aggregators.weighted_mean import RunningMean, TotalWeight, WeightedMean
from mtl.federation.algorithms.algorithm import Algorithm, ServerAlgorithm
from mtl.federation.algorithms.contract import RECEIVED, ClientAlgorithm, Clock, Optimizer
from mtl.federation.algorithms.fedavg import FedAvg
from mtl.federation.algorithms.reach import divide, reach
from mtl.federation.clients.contract import Block
from mtl.federation.layout import Layout
from mtl.federation.orders import Orders

if TYPE_CHECKING:
    from mtl.federation.server import RunContext

CONTROL, CLIENT_CONTROL, AT_RECEIVED = "control", "client_control", "gradients at the received model"
PLAIN = ClientAlgorithm()


class Controlled(ClientAlgorithm):
    """The client half of SCAFFOLD with option II."""

    reads: tuple[str, ...] = (CONTROL, CLIENT_CONTROL)
    keeps = (CLIENT_CONTROL,)

    def first(self, params: Params) -> Slots:
        """See `ClientAlgorithm`."""
        return {CLIENT_CONTROL: tree.zeros_like(params)}

    def correct(self, grads: Params, slots: Slots) -> Params:
        """See `ClientAlgorithm`."""
        names = [name for name in grads if name in slots[CONTROL]]
        if not names:
            return grads
        steps = torch._foreach_sub([slots[CONTROL][name] for name in names], [slots[CLIENT_CONTROL][name] for name in names])
        torch._foreach_add_(steps, [grads[name] for name in names])
        return grads | dict(zip(names, steps, strict=True))

    def final(self, slots: Slots, state: Slots, start: Slots, clock: Clock, optimizer: Optimizer) -> tuple[Slots, Slots]:
        """See `ClientAlgorithm`."""
        before, control = start[CLIENT_CONTROL], start[CONTROL]
        reached = reach(optimizer, PLAIN, control, steps=clock.steps, learning_rate=clock.learning_rate)
        after = {
            name: before[name] + change(value, slots["params"][name] - start["params"][name], reached[name])
            for name, value in control.items()
        }
        return {CLIENT_CONTROL: before | after}, {}


class ControlledAtReceived(Controlled):
    """The client half of SCAFFOLD with option I."""

    reads = (CONTROL, CLIENT_CONTROL, RECEIVED)
    sends = (CLIENT_CONTROL,)
    passes = 2

    def init(self, slots: Slots, optimizer: Optimizer) -> Slots:
        """See `ClientAlgorithm`."""
        sums = {name: torch.zeros_like(slots["params"][name]) for name in slots[CONTROL]}
        return super().init(slots, optimizer) | {AT_RECEIVED: sums}

    def step(
        self, slots: Slots, state: Slots, gradients: Callable[[Params], Params], optimizer: Optimizer, learning_rate: Tensor
    ) -> None:
        """See `ClientAlgorithm`."""
        grads = gradients(slots["params"] | slots[RECEIVED])
        for name, total in state[AT_RECEIVED].items():
            total.add_(grads[name])
        super().step(slots, state, gradients, optimizer, learning_rate)

    def final(self, slots: Slots, state: Slots, start: Slots, clock: Clock, optimizer: Optimizer) -> tuple[Slots, Slots]:
        """See `ClientAlgorithm`."""
        before, steps = start[CLIENT_CONTROL], torch.tensor(clock.steps, dtype=torch.float64)
        after = {name: divide(total, steps) for name, total in state[AT_RECEIVED].items()}
        return {CLIENT_CONTROL: before | after}, {CLIENT_CONTROL: tree.subtract(after, before)}


def change(control: Tensor, update: Tensor, reached: Tensor) -> Tensor:
    """Return c_i+ - c_i of option II, -c - (y - x) / r_K; 0 for clients whose parameter did not move.

    Args:
        control: c, [...], or the same for each client [K, ...].
        update: y - x, [K, ...].
        reached: r_K, [K].
    """
    moved = (reached > 0).to(update).view(-1, *[1] * (update.dim() - 1))
    return -control * moved - divide(update, reached)


@dataclass(frozen=True)
class ControlOptions(ServerAlgorithm):
    """The server half of SCAFFOLD before the run is known: option and learning rate of the server."""

    option: str
    step: FedAvg
    sends = (CONTROL,)
    needs_mean = True
    needs_sgd = True

    def bind(self, context: "RunContext", aggregator: Aggregator) -> "Control":
        """See `ServerAlgorithm`."""
        assert isinstance(aggregator, WeightedMean)
        return Control(self.option, self.step, context.optimizer, aggregator.total(context.sizes, context.assignment))


@dataclass(frozen=True)
class Control(ServerAlgorithm):
    """The server half of SCAFFOLD in one run.

    Attributes:
        option: I or II.
        step: moves the model.
        optimizer: of the clients.
        total: weight of all clients.
    """

    option: str
    step: FedAvg
    optimizer: Optimizer
    total: TotalWeight
    sends = (CONTROL,)

    def init(self, params: Params, layout: Layout) -> Slots:
        """See `ServerAlgorithm`."""
        return self.step.init(params, layout) | {CONTROL: tree.zeros_like(layout.sent(params))}

    def broadcast(self, state: Slots, travelling: Params) -> Slots:
        """See `ServerAlgorithm`."""
        return {CONTROL: {name: state[CONTROL][name] for name in travelling}}

    def collect(self, orders: Orders, aggregator: Aggregator) -> "ControlledUpdate":
        """See `ServerAlgorithm`."""
        assert isinstance(aggregator, WeightedMean)
        steps, control = orders.cohort.steps, orders.broadcast[CONTROL]
        reached = reach(self.optimizer, PLAIN, control, steps=steps, learning_rate=orders.learning_rate)

        def changes(block: Block, places: Tensor) -> Params:
            if self.option == "I":
                return block.sent[CLIENT_CONTROL]
            return {name: change(value, block.update[name], reached[name][places]) for name, value in control.items()}

        return ControlledUpdate(aggregator.collect(orders), RunningMean(orders, aggregator.weights(orders), changes))

    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """See `ServerAlgorithm`."""
        assert isinstance(update, ControlledUpdate)
        control = {name: state[CONTROL][name] + total / self.total.of(name, total) for name, total in update.changes.sums.items()}
        return self.step.apply(state, travelling, update) | {CONTROL: state[CONTROL] | control}


class ControlledUpdate:
    """Collects the mean of the updates and the weighted changes of the clients' variates.

    Args:
        mean: of the updates.
        changes: of the variates.
    """

    def __init__(self, mean: RunningMean, changes: RunningMean) -> None:
        self.mean, self.changes = mean, changes
        self.sums = mean.sums | {f"change of {name}": value for name, value in changes.sums.items()}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        self.mean.add(block, places)
        self.changes.add(block, places)

    def value(self) -> Params:
        """See `Update`."""
        return self.mean.value()

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """See `Update`."""
        return self.mean.keep_untrained(name, before, after)


def scaffold(option: str = "II", learning_rate: float = 1.0) -> Algorithm:
    """SCAFFOLD: control variates take the drift out of the clients' steps (Karimireddy et al. 2020).

    Args:
        option: II (variates from the updates, nothing more to send) or I (from gradients at the received model, twice the work)
        learning_rate: factor of the mean update
    """
    clients: dict[str, ClientAlgorithm] = {"I": ControlledAtReceived(), "II": Controlled()}
    if option not in clients:
        raise ValueError(f"algorithm.option must be I or II, got {option}")
    return Algorithm(ControlOptions(option, FedAvg(learning_rate)), clients[option])
