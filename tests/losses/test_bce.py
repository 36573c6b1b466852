import math

import pytest
import torch
from torch import nn

from mtl.losses.bce import BCE
from mtl.losses.pairs import TaskCounts, reduce_pairs

COUNTS = TaskCounts(torch.tensor([2.0, 0.0, 5.0]), torch.tensor([6.0, 8.0, 0.0]))


@pytest.mark.parametrize("weight", [2.5, [2.5, 1.0, 0.5]])
def test_bce_with_a_positive_weight_agrees_with_torch(weight: float | list[float]) -> None:
    rng = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 3, generator=rng), torch.rand(7, 3, generator=rng) < 0.4
    everything = torch.ones(7, 3, dtype=torch.bool)
    result = reduce_pairs(
        *BCE(3, positive_weight=weight).terms(logits, COUNTS), targets, everything, everything[:, 0], reduction="sum"
    )
    expected = nn.functional.binary_cross_entropy_with_logits(
        logits, targets.float(), pos_weight=torch.tensor(weight), reduction="none"
    )
    assert torch.allclose(result.tasks, expected.sum(0))


def test_balanced_weight_is_negatives_over_positives_and_one_where_a_kind_is_missing() -> None:
    positive, _ = BCE(3, positive_weight="balanced").terms(torch.zeros(1, 3), COUNTS)
    assert (positive / math.log(2)).tolist()[0] == pytest.approx([3.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("weight", "message"),
    [(0, "loss.positive_weight must be a number > 0, got 0"), ("auto", "a number > 0 or balanced, got auto")],
)
def test_a_wrong_weight_is_refused(weight: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BCE(3, positive_weight=weight)
