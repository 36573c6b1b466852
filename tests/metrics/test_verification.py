"""A case worked out by hand, scikit-learn's curves, and the laws of the protocol."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as their_roc_curve
from torch import Tensor

from mtl.metrics.verification import best_threshold, far_threshold, pair_scores, roc_curve, verify

SCORES = torch.tensor([0.9, 0.6, 0.5, 0.1, 0.8, 0.4, 0.7, 0.2])
SAME = torch.tensor([True, True, False, False] * 2)
FOLD = torch.tensor([0] * 4 + [1] * 4)


def random_pairs(seed: int, *, number: int = 200, folds: int = 4, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Scores that overlap, half of the pairs the same, in folds of both kinds."""
    rng = torch.Generator().manual_seed(seed)
    same = torch.arange(number) % 2 == 0
    scores = torch.randn(number, generator=rng) + same
    return (scores * 2).round() / 2 if ties else scores, same, torch.arange(number) // 2 % folds


def test_two_folds_by_hand() -> None:
    result = verify(SCORES, SAME, FOLD, fars=(0.5, 0.25))
    # On fold 1 accepting one or three of .8 .7 .4 .2 is right for three: of the two, the later; on fold 0 the kinds part between .6 and .5.
    assert result.threshold.tolist() == pytest.approx([0.3, 0.55])
    assert result.accuracy.tolist() == pytest.approx([3 / 4, 2 / 4])
    summary = result.summary()
    assert summary["accuracy"] == pytest.approx(0.625)
    assert summary["accuracy_deviation"] == pytest.approx(0.125 * math.sqrt(2))
    assert summary["accuracy_standard_error"] == pytest.approx(0.125)
    assert summary["auc"] == pytest.approx(13 / 16)  # pairs of pairs in the right order: 4 + 4 + 3 + 2
    assert summary["eer"] == pytest.approx(0.25)
    # The stricter negative of the others is the limit at FAR .5: .2 for fold 0 and .1 for fold 1; .25 of two pairs is none.
    assert result.tar[0.5].tolist() == [1.0, 1.0]
    assert result.far[0.5].tolist() == [0.5, 1.0]
    assert 0.25 not in result.tar


def test_curve_by_hand() -> None:
    curve = roc_curve(SCORES, SAME)
    assert curve.far.tolist() == [0, 0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 1]
    assert curve.tar.tolist() == [0, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]
    assert curve.threshold.tolist()[1:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.1])


@given(st.integers(0, 999), st.booleans())
@settings(max_examples=30, deadline=None)
def test_curve_area_and_equal_error_agree_with_scikit_learn(seed: int, ties: bool) -> None:
    scores, same, _ = random_pairs(seed, ties=ties)
    curve = roc_curve(scores, same)
    far, tar, threshold = their_roc_curve(same.numpy(), scores.double().numpy(), drop_intermediate=False)
    assert curve.far.tolist() == pytest.approx(far.tolist())
    assert curve.tar.tolist() == pytest.approx(tar.tolist())
    assert curve.threshold.tolist()[1:] == pytest.approx(threshold.tolist()[1:])
    assert curve.auc == pytest.approx(roc_auc_score(same.numpy(), scores.numpy()))
    # The equal error rate is where their curve, in straight lines, crosses far = 1 - tar.
    i = next(i for i in range(len(far) - 1) if far[i] + tar[i] <= 1 <= far[i + 1] + tar[i + 1])
    part = (1 - far[i] - tar[i]) / (far[i + 1] + tar[i + 1] - far[i] - tar[i])
    assert curve.eer == pytest.approx(far[i] + part * (far[i + 1] - far[i]))


@given(st.integers(0, 999), st.booleans())
@settings(max_examples=30, deadline=None)
def test_best_threshold_is_as_good_as_any(seed: int, ties: bool) -> None:
    scores, same, _ = random_pairs(seed, number=60, ties=ties)
    tried = torch.cat([scores - 1e-4, scores + 1e-4])
    most = max(int(((scores > threshold) == same).sum()) for threshold in tried)
    assert int(((scores > best_threshold(scores, same)) == same).sum()) == most


@pytest.mark.parametrize("low", [0.1, 1e18, -1e300])
def test_best_threshold_parts_neighbouring_and_accepts_all_of_large_scores(low: float) -> None:
    above = math.nextafter(low, math.inf)
    for lower, higher in ((low, above), (above, math.nextafter(above, math.inf))):
        threshold = best_threshold(torch.tensor([lower, higher], dtype=torch.float64), torch.tensor([False, True]))
        assert lower <= threshold < higher
    # All but one pair are of one person, and that one scores highest: accepting all is best.
    scores = torch.tensor([low, low, low, above], dtype=torch.float64)
    assert best_threshold(scores, torch.tensor([True, True, True, False])) < low


@given(st.integers(0, 999), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_thresholds_do_not_see_the_fold_that_they_are_tried_on(seed: int, number: int) -> None:
    scores, same, fold = random_pairs(seed)
    other = scores.clone()
    other[fold == number] = torch.randn(int((fold == number).sum()), generator=torch.Generator().manual_seed(seed + 1)) * 5
    one, two = verify(scores, same, fold, fars=(0.1,)), verify(other, same, fold, fars=(0.1,))
    assert one.threshold[number] == two.threshold[number]
    # Nor does the limit of a false accept rate: what is accepted in the fold follows from its scores and that limit alone.
    limit = far_threshold(scores[fold != number], same[fold != number], 0.1)
    same_in_fold = (fold == number) & same
    assert two.tar[0.1][number] == (other[same_in_fold] > limit).double().mean()


@given(st.integers(0, 999), st.sampled_from([0.01, 0.1, 0.3]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_far_threshold_is_the_lowest_that_keeps_the_rate(seed: int, far: float, ties: bool) -> None:
    scores, same, _ = random_pairs(seed, ties=ties)
    negatives = scores[~same]
    limit = far_threshold(scores, same, far)
    assert limit is not None
    assert (negatives > limit).double().mean() <= far
    lower = negatives[negatives < limit].max()
    assert (negatives > lower).double().mean() > far


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_nothing_but_thresholds_changes_under_a_rising_function_of_the_scores(seed: int) -> None:
    scores, same, fold = random_pairs(seed)
    one, two = verify(scores, same, fold), verify(scores.double().exp() * 3 + 1, same, fold)
    # Half way between two scores is another place after it: accuracies may differ by the pairs between.
    rates = {name: value for name, value in one.summary().items() if not name.startswith("accuracy")}
    assert {name: two.summary()[name] for name in rates} == pytest.approx(rates)


def test_perfect_and_blind_scores() -> None:
    same = torch.arange(40) % 2 == 0
    fold = torch.arange(40) // 20
    perfect = verify(same.double(), same, fold).summary()
    assert (perfect["accuracy"], perfect["eer"], perfect["auc"], perfect["tar@far=0.1"]) == (1, 0, 1, 1)
    blind = verify(torch.zeros(40), same, fold).summary()
    assert (blind["accuracy"], blind["eer"], blind["auc"]) == (0.5, 0.5, 0.5)
    assert blind["tar@far=0.1"] == 0


def test_scores_are_cosines() -> None:
    embeddings = torch.tensor([[3.0, 4.0], [4.0, 3.0], [-6.0, -8.0], [0.0, 0.0]])
    scores = pair_scores(embeddings, torch.tensor([0, 0, 0, 3]), torch.tensor([0, 1, 2, 1]))
    assert scores.tolist() == pytest.approx([1, 24 / 25, -1, 0])


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="verification needs at least 2 folds, got 1"):
        verify(SCORES, SAME, torch.zeros(8))
    with pytest.raises(ValueError, match="pairs of one person and of two are needed, got 0 and 4"):
        verify(SCORES, SAME, SAME.long())
    with pytest.raises(ValueError, match="scores must be finite, got 1 of 8 that are not"):
        roc_curve(torch.cat([SCORES[1:], torch.tensor([torch.nan])]), SAME)
