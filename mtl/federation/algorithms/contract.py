"""What a client algorithm is: how one client's parameters move in a local step."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from mtl.base.types import Params


class ClientAlgorithm(Protocol):
    """The optimiser of a client: init -> step -> final. Operations are elementwise or by client, so that it serves a stack too."""

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

    def for_stack(self) -> "ClientAlgorithm":
        """The same for parameters with a first axis of clients."""

    def without_decay(self) -> "ClientAlgorithm":
        """The same without weight decay."""

    def final(self, params: Params, start: Params) -> Params:
        """What the client sends after its last step."""
