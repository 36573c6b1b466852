import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mtl.federation.fusion import check_rule, fit_platt


def test_platt_agrees_with_a_logistic_regression_of_smoothed_targets() -> None:
    rng = torch.Generator().manual_seed(0)
    targets = torch.rand(300, 2, generator=rng) < 0.3
    scores = torch.randn(300, 2, generator=rng) * 4 + 3 * targets + 5
    scale, offset = fit_platt(scores, targets, torch.ones_like(targets))
    for t in range(2):
        positives, negatives = int(targets[:, t].sum()), int((~targets[:, t]).sum())
        # A smoothed target is a sample of each kind with weights that add up to one.
        goal = torch.where(targets[:, t], (positives + 1) / (positives + 2), 1 / (negatives + 2)).double()
        both = torch.cat([scores[:, t], scores[:, t]])[:, None].numpy()
        weights = torch.cat([goal, 1 - goal]).numpy()
        fit = LogisticRegression(C=1e6, tol=1e-9, max_iter=1000).fit(both, [1] * 300 + [0] * 300, weights)
        assert scale[t].item() == pytest.approx(fit.coef_[0, 0], rel=2e-3)
        assert offset[t].item() == pytest.approx(fit.intercept_[0], rel=2e-3)


def test_separable_scores_keep_a_finite_rising_calibration() -> None:
    scale, offset = fit_platt(
        torch.tensor([[-3.0], [-2.0], [5.0]]), torch.tensor([[False], [False], [True]]), torch.ones(3, 1).bool()
    )
    assert 0 < scale.item() < 100
    assert offset.isfinite().all()


@pytest.mark.parametrize("factor", [1e-15, 1e-3, 1e18])
def test_the_calibrated_score_does_not_depend_on_the_scale_of_the_score(factor: float) -> None:
    rng = torch.Generator().manual_seed(3)
    targets = torch.rand(200, 1, generator=rng) < 0.4
    scores = torch.randn(200, 1, generator=rng, dtype=torch.float64) + targets
    (scale, offset), (other, shift) = (fit_platt(s, targets, torch.ones_like(targets)) for s in (scores, factor * scores))
    assert other.item() * factor == pytest.approx(scale.item(), rel=1e-6)
    assert shift.item() == pytest.approx(offset.item(), rel=1e-6)


def test_equal_scores_give_the_smoothed_share_of_positives() -> None:
    """Without a slope the best probability is the mean of Platt's targets: 3 positives of 4/5, 7 negatives of 1/9."""
    targets = torch.arange(10)[:, None] < 3
    scale, offset = fit_platt(torch.full((10, 1), 0.1), targets, torch.ones_like(targets))
    assert abs(scale.item()) < 1e-6
    assert torch.sigmoid(offset + 0.1 * scale).item() == pytest.approx((3 * 4 / 5 + 7 / 9) / 10, rel=1e-3)


def test_scores_that_are_not_finite_cannot_be_calibrated() -> None:
    scores, targets = (
        torch.tensor([[0.0, 1.0], [1.0, torch.inf], [2.0, 0.0]]),
        torch.tensor([[True, False], [False, True], [True, True]]),
    )
    with pytest.raises(ValueError, match="fusion=platt needs finite scores to calibrate, got others in subtask 1"):
        fit_platt(scores, targets, torch.ones_like(targets))
    # Where the label is unknown the score does not count.
    assert all(value.isfinite().all() for value in fit_platt(scores, targets, scores.isfinite()))


def test_one_sided_tasks_are_left_as_they_are() -> None:
    scores = torch.randn(5, 2)
    targets = torch.zeros(5, 2, dtype=torch.bool)
    targets[0, 1] = True
    mask = torch.ones(5, 2, dtype=torch.bool)
    mask[0, 1] = False
    scale, offset = fit_platt(scores, targets, mask)
    assert scale.tolist() == [1, 1]
    assert offset.tolist() == [0, 0]


def test_an_unknown_rule_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="fusion must be one of argmax, platt, got vote"):
        check_rule("vote")
