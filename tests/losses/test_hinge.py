import pytest
import torch

from mtl.losses.hinge import Hinge
from mtl.losses.pairs import TaskCounts

COUNTS = TaskCounts(torch.ones(1), torch.ones(1))
LOGITS = torch.tensor([[-2.0], [-0.5], [0.0], [0.25], [3.0]])


def test_hinge_by_hand() -> None:
    positive, negative = Hinge(1, margin=0.5).terms(LOGITS, COUNTS)
    assert positive.flatten().tolist() == [2.5, 1.0, 0.5, 0.25, 0.0]
    assert negative.flatten().tolist() == [0.0, 0.0, 0.5, 0.75, 3.5]


def test_squared_hinge_by_hand() -> None:
    positive, negative = Hinge(1, margin=0.5, squared=True).terms(LOGITS, COUNTS)
    assert positive.flatten().tolist() == [6.25, 1.0, 0.25, 0.0625, 0.0]
    assert negative.flatten().tolist() == [0.0, 0.0, 0.25, 0.5625, 12.25]


def test_a_margin_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.margin must be a number > 0, got 0"):
        Hinge(1, margin=0)
