"""FedAdam, FedYogi and FedAdagrad: adaptive steps of the server (Reddi et al., Adaptive Federated Optimization, ICLR 2021).

    m <- beta1 m + (1 - beta1) D
    v <- beta2 v + (1 - beta2) D^2                      FedAdam
         v - (1 - beta2) D^2 sign(v - D^2)              FedYogi
         v + D^2                                        FedAdagrad
    x <- x + learning_rate c m / (sqrt(v) + tau)        c = sqrt(1 - beta2^t) / (1 - beta1^t), 1 in FedAdagrad

D is the aggregated update and t counts the rounds; m and v start at zero. Where no client trained a coordinate, its value, its moments and
its count stay: those of a head wait until somebody trains it.

The paper starts v at tau^2 or more and has no c; the authors' code starts v at zero and takes c from Keras, in FedYogi too. The default is
that of their code, which made their figures. Without c, `bias_correction=false`, the steps along a constant D are twice as long around the
tenth round as in the first. In FedAdagrad beta1 is 0, as in their runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.base import tree
from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Update
from mtl.federation.algorithms.algorithm import ServerAlgorithm
from mtl.federation.layout import Layout, is_head

FIRST, SECOND, ROUNDS = "first_moment", "second_moment", "rounds"


@dataclass(frozen=True)
class FedOpt(ServerAlgorithm):
    """The server's step along the mean of the updates, divided by the root of their second moment; a subclass has `second`.

    Args:
        learning_rate: of the server
        beta1: decay of the mean of the updates
        tau: added to the root of the second moment, > 0; the larger, the less the step adapts

    Raises:
        ValueError: a value is out of its range.
    """

    learning_rate: float = 0.01
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("learning_rate", "tau"):
            if not getattr(self, name) > 0:
                raise ValueError(f"algorithm.{name} must be > 0, got {getattr(self, name)}")
        self._check_decay("beta1")

    def _check_decay(self, name: str) -> None:
        if not 0 <= getattr(self, name) < 1:
            raise ValueError(f"algorithm.{name} must be in [0, 1), got {getattr(self, name)}")

    def second(self, moment: Tensor, square: Tensor) -> Tensor:
        """Return the second moment after an update of this square."""
        raise NotImplementedError

    def correction(self, rounds: Tensor) -> Tensor:
        """Return c after this many rounds, float64."""
        return torch.ones_like(rounds, dtype=torch.float64)

    def init(self, params: Params, layout: Layout) -> Slots:
        """See `ServerAlgorithm`. `rounds` has a number for each subtask of a head, [T, 1, ...], and one for other parameters, [].

        Where clients train parts of a parameter, its rounds become those of each coordinate.
        """
        sent = layout.sent(params)
        rounds = {
            name: torch.zeros([len(value), *[1] * (value.dim() - 1)] if is_head(name) else [], device=value.device)
            for name, value in sent.items()
        }
        return {"params": params, FIRST: tree.zeros_like(sent), SECOND: tree.zeros_like(sent), ROUNDS: rounds}

    @torch.no_grad()
    @record_function("mtl/server")
    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """See `ServerAlgorithm`."""
        after: Slots = {slot: dict(values) for slot, values in state.items()}
        # Parameters that are frozen in this round have moments but no update.
        for name, direction in update.value().items():
            rounds = state[ROUNDS][name] + 1
            first = self.beta1 * state[FIRST][name] + (1 - self.beta1) * direction
            second = self.second(state[SECOND][name], direction.square())
            step = self.learning_rate * self.correction(rounds).to(first.dtype) * first / (second.sqrt() + self.tau)
            moved = {"params": travelling[name] + step, FIRST: first, SECOND: second, ROUNDS: rounds}
            for slot, value in moved.items():
                before = travelling[name] if slot == "params" else state[slot][name]
                after[slot][name] = update.keep_untrained(name, before, value)
        return after


@dataclass(frozen=True)
class FedAdagrad(FedOpt):
    """FedAdagrad: the server divides the mean update by the root of all squares so far (Reddi et al. 2021).

    Args:
        learning_rate: of the server
        beta1: decay of the mean of the updates
        tau: added to the root of the squares, > 0; the larger, the less the step adapts
    """

    def second(self, moment: Tensor, square: Tensor) -> Tensor:
        """See `FedOpt`."""
        return moment + square


@dataclass(frozen=True)
class FedAdam(FedOpt):
    """FedAdam: the server steps by Adam along the mean update (Reddi et al. 2021).

    Args:
        learning_rate: of the server
        beta1: decay of the mean of the updates
        beta2: decay of the mean of their squares
        tau: added to the root of the mean square, > 0; the larger, the less the step adapts
        bias_correction: whether steps make up for moments that start at zero
    """

    beta1: float = 0.9
    beta2: float = 0.99
    bias_correction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_decay("beta2")

    def second(self, moment: Tensor, square: Tensor) -> Tensor:
        """See `FedOpt`."""
        return self.beta2 * moment + (1 - self.beta2) * square

    def correction(self, rounds: Tensor) -> Tensor:
        """See `FedOpt`."""
        if not self.bias_correction:
            return super().correction(rounds)
        # In single precision 1 - beta^t would lose digits.
        rounds = rounds.double()
        return (1 - self.beta2**rounds).sqrt() / (1 - self.beta1**rounds)


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """FedYogi: FedAdam with a second moment that falls more slowly (Reddi et al. 2021).

    Args:
        learning_rate: of the server
        beta1: decay of the mean of the updates
        beta2: decay of the second moment
        tau: added to the root of the second moment, > 0; the larger, the less the step adapts
        bias_correction: whether steps make up for moments that start at zero
    """

    def second(self, moment: Tensor, square: Tensor) -> Tensor:
        """See `FedOpt`."""
        return moment - (1 - self.beta2) * square * torch.sign(moment - square)
