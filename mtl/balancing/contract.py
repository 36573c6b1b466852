"""What a task balancer is: task losses and their gradients go in; task weights or an update direction come out.

A balancer is a frozen dataclass of hyper-parameters and pure functions. What it remembers is a State, a dictionary of tensors
that a checkpoint saves unchanged. Every tensor may have leading axes [...]: a cohort of K clients is balanced in one call, [K, T]
and [K, T, T], and each client gets what it would get alone. Tasks without a known label in the batch are not `active`: their weight
is 0, what is remembered of them does not change, and the others get what they would get if these tasks did not exist.

P is the number of coordinates of a gradient: trunk parameters, or batch x features at the level of the representation.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from mtl.balancing.active import only_active
from mtl.balancing.gramian import gramian_of

State = dict[str, Tensor]
Needs = Literal["losses", "gramian", "gradients"]
Level = Literal["representation", "parameters"]


class Balancer(ABC):
    """A task balancer: frozen hyper-parameters and pure functions.

    Attributes:
        heads: whether the authors' own code lets the weights reach the heads.
        observes: whether `observe` is to be called.
    """

    heads: ClassVar[bool]
    observes: ClassVar[bool] = False

    @property
    def levels(self) -> tuple[Level, ...]:
        """Where the gradients may be taken, the cheapest first: the features of a batch, or the parameters of the trunk.

        A method that remembers gradients cannot compare the features of different batches.
        """
        return ("representation", "parameters")

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What the method reads of the tasks.

        `losses`: `weigh` is called without a Gramian; `gramian`: `weigh` with one, or `combine`; `gradients`: `combine` only.
        """

    def for_run(self, *, steps_per_round: float, num_rounds: float) -> "Balancer":
        """The same balancer with what depends on the length of the run, such as a warm-up, filled in.

        Args:
            steps_per_round: mean local steps of a client in a round that it takes part in.
            num_rounds: mean number of rounds that a client takes part in.
        """
        return self

    def init(self, like: Tensor) -> State:
        """The state before the first step.

        Args:
            like: gives the leading axes, type and device: [..., T], or [..., T, P] for gradients.
        """
        return {}

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        """The trailing shape of the uniform random numbers in [0, 1) that one step takes; `num_coordinates` is P."""
        return (0,)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """The factor of each task's loss.

        Args:
            state: what the balancer remembers.
            losses: [..., T].
            gramian: [..., T, T], None where `needs` is `losses`.
            active: bool [..., T], the tasks with a known label.
            draw: uniform in [0, 1), [..., *draw_shape].

        Returns:
            the weights [..., T] and the state of the next step. What the weights sum to is part of a method and said in its docstring: it
            scales the learning rate.
        """
        raise NotImplementedError(f"{type(self).__name__} works on gradients: call combine")

    def combine(
        self, state: State, losses: Tensor, gradients: Tensor, active: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """The direction that takes the gradient's place: descend along its negative.

        Args:
            state: what the balancer remembers.
            losses: [..., T].
            gradients: [..., T, P].
            active: bool [..., T], the tasks with a known label.
            draw: uniform in [0, 1), [..., *draw_shape].

        Returns:
            the direction [..., P], the weights of the heads [..., T] and the next state.
        """
        gradients = only_active(gradients, active[..., None])
        gramian = gramian_of(gradients) if self.needs == "gramian" else None
        weights, state = self.weigh(state, losses, gramian, active, draw)
        return weighted_sum(weights, gradients), weights, state

    def observe(self, state: State, losses: Tensor, active: Tensor) -> State:
        """Learn from what the weights did, once the step is taken; returns the next state.

        Args:
            state: what the balancer remembers.
            losses: [..., T], of the same batch after the step.
            active: bool [..., T], the tasks with a known label.
        """
        return state


def weighted_sum(weights: Tensor, gradients: Tensor) -> Tensor:
    """Sum gradients [..., T, P] with weights [..., T] to one of [..., P]."""
    return (weights[..., None, :] @ gradients).squeeze(-2)
