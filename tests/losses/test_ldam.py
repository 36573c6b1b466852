import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mtl.losses.ldam import LDAM
from mtl.losses.pairs import TaskCounts

POSITIVES, NEGATIVES = torch.tensor([1.0, 81.0]), torch.tensor([16.0, 3.0])


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_it_is_the_papers_softmax_over_two_classes(progress: float) -> None:
    cosines = torch.linspace(-0.9, 0.9, 7)[:, None].repeat(1, 2)
    terms = LDAM(2).terms(cosines, TaskCounts(POSITIVES, NEGATIVES, torch.tensor(progress)))
    for t in range(2):
        numbers = np.array([POSITIVES[t].item(), NEGATIVES[t].item()])
        # Margins and weights as the authors compute them.
        margins = numbers**-0.25 * 0.5 / (numbers**-0.25).max()
        weights = (1 - 0.9999) / (1 - 0.9999**numbers)
        weights = weights / weights.sum() * 2 if progress else np.ones(2)
        for label in (0, 1):
            scores = torch.stack([cosines[:, t], torch.zeros(7)], 1).double()
            scores[:, label] -= margins[label]
            expected = weights[label] * F.cross_entropy(30 * scores, torch.full((7,), label), reduction="none")
            torch.testing.assert_close(terms[label][:, t].double(), expected, rtol=1e-4, atol=1e-6)


def test_margins_by_hand() -> None:
    # One positive, 16 negatives: the positive has the whole margin .5, the negatives half of it.
    loss = LDAM(1, scale=1, beta=0)
    positive, negative = loss.terms(torch.zeros(1, 1), TaskCounts(POSITIVES[:1], NEGATIVES[:1]))
    assert positive.item() == pytest.approx(np.log(1 + np.exp(0.5)))
    assert negative.item() == pytest.approx(np.log(1 + np.exp(0.25)))


def test_weights_come_on_when_their_share_of_the_training_is_done() -> None:
    logits, loss = torch.tensor([[0.1, 0.1]]), LDAM(2, defer=[0.5, 0.75])

    def at(progress: float) -> list[list[float]]:
        terms = loss.terms(logits, TaskCounts(POSITIVES, NEGATIVES, torch.tensor(progress)))
        return torch.cat(terms).T.tolist()

    start, middle, end = at(0.49), at(0.5), at(0.75)
    assert start == at(0.0)
    assert middle[1] == start[1]
    assert end[0] == middle[0]
    # Positives of the first subtask are rare and weigh more from then on, those of the second are common and weigh less.
    assert middle[0][0] > start[0][0]
    assert middle[0][1] < start[0][1]
    assert end[1][0] < start[1][0]


def test_a_missing_kind_counts_as_one_label_for_the_margins_and_leaves_the_weights_at_one() -> None:
    logits, loss = torch.linspace(-1, 1, 5)[:, None].repeat(1, 3), LDAM(3)
    one_sided = TaskCounts(torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 9.0, 0.0]), torch.ones(()))
    with_one = TaskCounts(torch.tensor([9.0, 1.0, 1.0]), torch.tensor([1.0, 9.0, 1.0]))
    for result, expected in zip(loss.terms(logits, one_sided), loss.terms(logits, with_one), strict=True):
        assert torch.equal(result, expected)


def test_the_decision_is_the_scaled_score_without_margins() -> None:
    assert LDAM(2, scale=8).decision(torch.tensor([[-0.5, 0.25]])).tolist() == [[-4.0, 2.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1}, "loss.margin must be a number >= 0, got -0.1"),
        ({"scale": 0}, "loss.scale must be a number > 0, got 0"),
        ({"beta": 1}, r"loss.beta must be a number in \[0, 1\), got 1"),
        ({"defer": 1.5}, r"loss.defer must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDAM(2, **options)
