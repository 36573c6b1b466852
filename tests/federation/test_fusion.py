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
