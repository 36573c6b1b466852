import math
import re

import pytest
import torch

from mtl.losses.bce import BCE
from mtl.losses.pairs import TaskCounts, check_reduction, per_task, reduce_pairs

COUNTS = TaskCounts(torch.tensor([2.0, 0.0]), torch.tensor([6.0, 8.0]))


def test_the_objective_is_the_summed_positive_and_negative_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    targets = torch.tensor([[True, False], [False, True]])
    mask = torch.tensor([[True, True], [True, False]])
    positive, negative = BCE(2).terms(logits, COUNTS)
    losses = reduce_pairs(positive, negative, targets, mask, torch.ones(2, dtype=torch.bool), reduction="sum")
    # L+(0) = ln 2; L-(1) = ln(1 + e); L-(2) = ln(1 + e^2); the last label is not known.
    assert losses.positive.tolist() == pytest.approx([math.log(2), 0])
    assert losses.negative.tolist() == pytest.approx([math.log(1 + math.e**2), math.log(1 + math.e)])
    mean = reduce_pairs(positive, negative, targets, mask, torch.ones(2, dtype=torch.bool), reduction="mean")
    assert mean.tasks.tolist() == pytest.approx([(math.log(2) + math.log(1 + math.e**2)) / 2, math.log(1 + math.e) / 2])
    known = reduce_pairs(positive, negative, targets, mask, torch.ones(2, dtype=torch.bool), reduction="known")
    assert known.tasks.tolist() == pytest.approx([(math.log(2) + math.log(1 + math.e**2)) / 2, math.log(1 + math.e)])


def test_a_task_without_known_labels_costs_nothing() -> None:
    nothing = torch.zeros(4, 3, dtype=torch.bool)
    for reduction in ("mean", "known", "sum"):
        losses = reduce_pairs(torch.ones(4, 3), torch.ones(4, 3), nothing, nothing, nothing[:, 0], reduction=reduction)
        assert losses.tasks.tolist() == [0, 0, 0]


def test_an_unknown_reduction_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="must be one of mean, known, sum, got avg"):
        check_reduction("avg")


def test_training_starts_at_progress_zero_unless_told() -> None:
    assert COUNTS.progress.shape == ()
    assert COUNTS.progress == 0


def test_a_subtask_without_one_or_both_kinds_of_label_is_one_sided() -> None:
    counts = TaskCounts(torch.tensor([2.0, 0.0, 5.0, 0.0]), torch.tensor([6.0, 8.0, 0.0, 0.0]))
    assert counts.one_sided.tolist() == [False, True, True, True]


def test_an_option_is_one_number_for_all_subtasks_or_one_for_each() -> None:
    assert per_task("gamma", 2, num_tasks=3, must_be=">= 0").tolist() == 2
    assert per_task("gamma", [1, 2.5, 0], num_tasks=3, must_be=">= 0").tolist() == [1, 2.5, 0]


@pytest.mark.parametrize(
    ("value", "must_be", "message"),
    [
        (0, "> 0", "loss.gamma must be a number > 0, got 0"),
        (-0.5, ">= 0", "loss.gamma must be a number >= 0, got -0.5"),
        (1, "in [0, 1)", "loss.gamma must be a number in [0, 1), got 1"),
        (1.1, "in [0, 1]", "loss.gamma must be a number in [0, 1], got 1.1"),
        (math.nan, ">= 0", "loss.gamma must be a number >= 0, got nan"),
        (math.inf, ">= 0", "loss.gamma must be a number >= 0, got inf"),
        ("two", ">= 0", "loss.gamma must be a number >= 0, got two"),
        ([1, 2], ">= 0", "loss.gamma must be one number or a list of 3, one for each subtask, got a list of 2"),
        ([1, -2, 1], ">= 0", "loss.gamma must be a number >= 0, got -2"),
        ([1, "two", 1], ">= 0", "loss.gamma must be a number >= 0, got two"),
        ([[1], [2], [3]], ">= 0", "loss.gamma must be a number >= 0, got [1]"),
    ],
)
def test_a_wrong_option_is_refused(value: object, must_be: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        per_task("gamma", value, num_tasks=3, must_be=must_be)  # type: ignore[arg-type]
