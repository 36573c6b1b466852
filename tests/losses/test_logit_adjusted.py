import math

import pytest
import torch
import torch.nn.functional as F

from mtl.losses.logit_adjusted import LogitAdjusted
from mtl.losses.pairs import TaskCounts


def test_logit_adjusted_by_hand() -> None:
    # Three negatives for a positive: a = -ln 3, so at z = 0 a positive costs ln 4 and a negative ln 4/3.
    positive, negative = LogitAdjusted(1).terms(torch.zeros(1, 1), TaskCounts(torch.tensor([5.0]), torch.tensor([15.0])))
    assert positive.item() == pytest.approx(math.log(4))
    assert negative.item() == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_it_is_the_papers_softmax_over_two_classes(tau: float) -> None:
    counts = TaskCounts(torch.tensor([3.0, 90.0]), torch.tensor([60.0, 2.0]))
    logits = torch.linspace(-4, 4, 9)[:, None].repeat(1, 2)
    positive, negative = LogitAdjusted(2, tau=tau).terms(logits, counts)
    log_prior = torch.stack([counts.positives, counts.negatives]).div(counts.positives + counts.negatives).log()
    for t in range(2):
        scores = torch.stack([logits[:, t], torch.zeros(9)], 1) + tau * log_prior[:, t]
        for result, label in ((positive, 0), (negative, 1)):
            torch.testing.assert_close(result[:, t], F.cross_entropy(scores, torch.full((9,), label), reduction="none"))


def test_a_missing_kind_counts_as_one_label() -> None:
    logits = torch.linspace(-2, 2, 5)[:, None].repeat(1, 3)
    loss = LogitAdjusted(3)
    one_sided = TaskCounts(torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 9.0, 0.0]))
    with_one = TaskCounts(torch.tensor([9.0, 1.0, 1.0]), torch.tensor([1.0, 9.0, 1.0]))
    for result, expected in zip(loss.terms(logits, one_sided), loss.terms(logits, with_one), strict=True):
        assert torch.equal(result, expected)


def test_the_prior_is_not_part_of_the_decision() -> None:
    logits = torch.tensor([[-0.5, 0.5]])
    assert torch.equal(LogitAdjusted(2).decision(logits), logits)


def test_a_negative_tau_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.tau must be a number >= 0, got -1"):
        LogitAdjusted(1, tau=-1)
