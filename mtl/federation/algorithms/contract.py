"""What a client does in a round: its optimiser, and the client half of a federated algorithm, which wraps the optimiser.

Tensors are those of one client or of a stack of clients [K, ...]. Operations are elementwise or by client, so that one code
serves both.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mtl.base.types import Params, Slots

RECEIVED = "received"  # the slot of the parameters that the server has sent in this round, as they came
STEPS = "steps"  # the slot with `count`, the local steps of each client in this round, float [] or [K]


class Optimizer(Protocol):
    """How one client's parameters move in a local step."""

    @property
    def learning_rate(self) -> float:
        """The trunk's learning rate at the start of the schedule."""

    def init(self, params: Params) -> Params:
        """The optimiser's state before the first step. Entries with the shape of a parameter begin with its name."""

    def step(self, params: Params, grads: Params, state: Params, learning_rate: Tensor) -> tuple[Params, Params]:
        """Take one step in place.

        Args:
            params: The parameters that train.
            grads: Their gradients.
            state: What `init` gave, of these parameters or of more.
            learning_rate: The trunk's, [].

        Returns:
            The parameters and the state after the step, in the memory of those given.
        """

    def groups(self, params: Iterable[str]) -> dict[float, list[str]]:
        """The names of parameters by the factor of their learning rate."""

    def for_stack(self) -> "Optimizer":
        """The same for parameters with a first axis of clients."""

    def without_decay(self) -> "Optimizer":
        """The same without weight decay."""

    def final(self, params: Params, start: Params) -> Params:
        """What the client sends after its last step."""


@dataclass(frozen=True)
class Clock:
    """How far some clients have trained in a round.

    Attributes:
        steps: local steps of each, K numbers.
        learning_rate: of the trunk in this round.
    """

    steps: Sequence[int]
    learning_rate: float


class ClientAlgorithm:
    """The client half of a federated algorithm; this one is FedAvg's, which steps along the gradient and keeps nothing.

    Attributes:
        reads: slots that a step reads besides `params`: of the server's broadcast, kept by the client, `RECEIVED` or `STEPS`.
        keeps: slots that stay on the client from round to round, of the names and shapes of parameters.
        sends: slots that the client sends besides the update of `params`.
        passes: gradients that are computed in a step.
        answers: the slot whose model scores for the client: `params`, or one in `keeps` that has the names of what is sent.
    """

    reads: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    passes: int = 1
    answers: str = "params"

    def first(self, params: Params) -> Slots:
        """Return the slots in `keeps` of a client that has never trained. `params` are the parameters that are sent."""
        return {}

    def init(self, slots: Slots, optimizer: Optimizer) -> Slots:
        """Return the state of the optimiser before the first step of a round, for each slot that it trains."""
        return {"params": optimizer.init(slots["params"])}

    def step(
        self, slots: Slots, state: Slots, gradients: Callable[[Params], Params], optimizer: Optimizer, learning_rate: Tensor
    ) -> None:
        """Take one step in place.

        Args:
            slots: `params`, without those that are frozen in this round, and the slots in `reads`.
            state: what `init` returned.
            gradients: returns the gradients of this step's batch at a point with the names of `params`. It must be called once at
                `params` itself: that call gives the losses of the log and the memory of a balancer.
            optimizer: of the client.
            learning_rate: of the trunk, [].
        """
        params = slots["params"]
        optimizer.step(params, self.correct(gradients(params), slots), state["params"], learning_rate)

    def correct(self, grads: Params, slots: Slots) -> Params:
        """Return the gradients that the optimiser steps along."""
        return grads

    def final(self, slots: Slots, state: Slots, start: Slots, clock: Clock, optimizer: Optimizer) -> tuple[Slots, Slots]:
        """Return the slots that the clients keep, and those that they send besides the update of `params`; stacked [K, ...].

        Args:
            slots: all parameters and the slots in `keeps`, after the last step.
            state: of the optimiser, after it.
            start: the slots before the first step, those of the broadcast included.
            clock: the clients' steps and learning rate.
            optimizer: of the clients.
        """
        return {}, {}
