"""The objective: the summed positive and negative loss of every subtask.

    min_f  sum_i sum_t  m_it [ y_it L+_t(f(x_i)) + (1 - y_it) L-_t(f(x_i)) ]

A pair loss gives both terms for every element; `reduce_pairs` applies targets, masks and padding, and keeps the parts apart.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Reduction = Literal["mean", "known", "sum"]
PerTask = float | list[float]

RANGES = {
    "> 0": lambda x: x > 0,
    ">= 0": lambda x: x >= 0,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in [0, 1]": lambda x: 0 <= x <= 1,
}


@dataclass(frozen=True)
class TaskCounts:
    """What a loss may know of the training data and of the progress of the training.

    Attributes:
        positives: float [T], known positives in the training data of the client.
        negatives: float [T], known negatives.
        progress: float [], the share of the training that is done, 0 at its start and 1 at its end.
    """

    positives: Tensor
    negatives: Tensor
    progress: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def one_sided(self) -> Tensor:
        """Where a kind of label is missing, or both; bool [T]."""
        return (self.positives == 0) | (self.negatives == 0)


@dataclass(frozen=True)
class PairLosses:
    """The two parts of each subtask's loss.

    Attributes:
        positive: [T], the part of the positives.
        negative: [T], the part of the negatives.
        total: [T], what is minimised; None where that is the sum of the two parts.
    """

    positive: Tensor
    negative: Tensor
    total: Tensor | None = None

    @property
    def tasks(self) -> Tensor:
        """The loss of each subtask, [T]."""
        return self.positive + self.negative if self.total is None else self.total


class PairLoss(nn.Module):
    """A loss of two terms, [B, T] to [B, T] each; it may have trained parameters, shared by all subtasks."""

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """What each element costs as a positive and as a negative.

        Args:
            logits: [B, T].
            counts: of the client's training data.

        Returns:
            two tensors [B, T].
        """
        raise NotImplementedError

    def decision(self, logits: Tensor) -> Tensor:
        """Scores [B, T] that rise with the logits [B, T] and say yes above zero."""
        return logits


def reduce_pairs(
    positive: Tensor, negative: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, *, reduction: Reduction = "mean"
) -> PairLosses:
    """Sum the terms over the images of a batch, each element by its label.

    Padding and unknown labels have no influence, even where their terms are not finite.

    Args:
        positive: [B, T], what each element costs as a positive.
        negative: [B, T], what it costs as a negative.
        targets: bool [B, T].
        mask: bool [B, T], where the label is known and trained.
        valid: bool [B], False for padding.
        reduction: `mean` divides by the images of the batch, so that a subtask with more known labels weighs more; `known` divides each
            subtask by its number of known labels (a subtask without any costs 0); `sum` does not divide.
    """
    counted = mask & valid[:, None]
    zero = positive.new_zeros(())
    parts = [torch.where(counted & chosen, term, zero).sum(0) for term, chosen in ((positive, targets), (negative, ~targets))]
    if reduction == "mean":
        parts = [part / valid.sum().clamp_min(1) for part in parts]
    elif reduction == "known":
        parts = [part / counted.sum(0).clamp_min(1) for part in parts]
    return PairLosses(*parts)


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is one of `Reduction`."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction}")


def per_task(name: str, value: PerTask, *, num_tasks: int, must_be: str) -> Tensor:
    """The option `name` of a loss as float64: [] where one number holds for all subtasks, [T] where each has its own.

    Args:
        name: of the option, for errors.
        value: one number, or a list with one for each subtask.
        num_tasks: T.
        must_be: one of `RANGES`.

    Raises:
        ValueError: for a number outside the range, and for a list of another length than T.
    """
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(value, list | tuple) and len(numbers) != num_tasks:
        raise ValueError(
            f"loss.{name} must be one number or a list of {num_tasks}, one for each subtask, got a list of {len(numbers)}"
        )
    for number in numbers:
        if not isinstance(number, int | float) or not math.isfinite(number) or not RANGES[must_be](number):
            raise ValueError(f"loss.{name} must be a number {must_be}, got {number}")
    return torch.tensor(value, dtype=torch.float64)


def constant(value: Tensor) -> nn.Buffer:
    """A constant of a loss: float32, moves with the module, is neither trained nor saved."""
    return nn.Buffer(value.float(), persistent=False)
