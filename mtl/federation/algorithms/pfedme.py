"""pFedMe (T Dinh et al., NeurIPS 2020): FedAvg on the Moreau envelopes of the clients' objectives.

    t_i <- t_i - inner_rate (g_i(t_i) + pull (t_i - w))     `inner_steps` times on a batch, from w;  t_i answers for the client
    w <- w - rate pull (w - t_i)                            then once, by the client's optimiser;  w starts at x, is sent and averaged
    x <- x + learning_rate mean (w - x)                     the paper's beta; `pull` is its lambda

Departures from the authors' code (github.com/CharlieDinh/pFedMe): only the clients of the cohort train, an epoch is an epoch, and t_i
starts from w in each step.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.contract import Optimizer
from mtl.federation.algorithms.ditto import PERSONAL, Personal, trained
from mtl.federation.algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class MoreauEnvelope(Personal):
    """The client half of pFedMe.

    Args:
        pull: weight of the pull towards w, > 0.
        inner_steps: gradient steps on each batch, >= 1.
        inner_rate: their learning rate, > 0.

    Raises:
        ValueError: a value is out of its range.
    """

    pull: float
    inner_steps: int
    inner_rate: float

    def __post_init__(self) -> None:
        for name, least in (("pull", self.pull), ("inner_rate", self.inner_rate)):
            if not least > 0:
                raise ValueError(f"algorithm.{name} must be > 0, got {least}")
        if self.inner_steps < 1:
            raise ValueError(f"algorithm.inner_steps must be >= 1, got {self.inner_steps}")

    @property
    def passes(self) -> int:  # type: ignore[override]
        """See `ClientAlgorithm`."""
        return self.inner_steps

    def step(
        self, slots: Slots, state: Slots, gradients: Callable[[Params], Params], optimizer: Optimizer, learning_rate: Tensor
    ) -> None:
        """See `ClientAlgorithm`."""
        params, personal = slots["params"], trained(slots, PERSONAL)
        for inner in range(self.inner_steps):
            grads = gradients(personal if inner else params)
            for name, value in personal.items():
                at = value if inner else params[name]
                value.copy_(at - self.inner_rate * (grads[name] + self.pull * (at - params[name])))
        pulled = {name: self.pull * (value - personal[name]) for name, value in params.items()}
        optimizer.step(params, pulled, state["params"], learning_rate)


def pfedme(
    pull: float = 15.0, inner_steps: int = 5, inner_rate: float = 0.01, learning_rate: float = 1.0, momentum: float = 0.0
) -> Algorithm:
    """pFedMe: a model for each client, and a global one in the middle of them (T Dinh et al. 2020).

    Args:
        pull: weight of the pull between the two, the paper's lambda
        inner_steps: gradient steps of the client's model on each batch
        inner_rate: their learning rate
        learning_rate: factor of the mean update, the paper's beta
        momentum: momentum over the rounds
    """
    return Algorithm(FedAvg(learning_rate, momentum), MoreauEnvelope(pull, inner_steps, inner_rate))
