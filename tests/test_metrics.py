import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from mtl.metrics import auroc, balanced_accuracy, best_thresholds, evaluate_scores, rank1, worst_clients

RNG = torch.Generator().manual_seed(0)
SCORES = torch.randn(60, 3, generator=RNG) * 20
TARGETS = torch.rand(60, 3, generator=RNG) < 0.3
KNOWN = torch.rand(60, 3, generator=RNG) < 0.8


def test_auroc_agrees_with_scikit_learn_on_known_labels() -> None:
    ours = auroc(SCORES, TARGETS, KNOWN)
    for t in range(3):
        known = KNOWN[:, t]
        assert ours[t] == pytest.approx(roc_auc_score(TARGETS[known, t], SCORES[known, t]), abs=1e-6)


def test_auroc_tells_large_scores_apart() -> None:
    scores = torch.tensor([[40.0], [41.0], [42.0], [43.0]])  # a sigmoid in float32 makes these all 1
    assert auroc(scores, torch.tensor([[False], [True], [False], [True]]), torch.ones(4, 1, dtype=torch.bool)).item() == 0.75


def test_balanced_accuracy_agrees_with_scikit_learn_on_known_labels() -> None:
    ours = balanced_accuracy(SCORES, TARGETS, KNOWN)
    for t in range(3):
        known = KNOWN[:, t]
        assert ours[t] == pytest.approx(balanced_accuracy_score(TARGETS[known, t], SCORES[known, t] > 0), abs=1e-6)


def test_rank1_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.2, 0.3], [0.9, 0.1], [5.0, 0.0]])
    assert rank1(scores, torch.tensor([0, 1, 1, -1])) == pytest.approx(2 / 3)


def test_rank1_is_among_the_subtasks_that_exclude_one_another() -> None:
    scores = torch.tensor([[1.0, 0.0, 5.0], [0.2, 0.3, 5.0]])
    known = torch.ones(2, 3, dtype=torch.bool)
    metrics = evaluate_scores(scores, known, known, torch.tensor([0, 0]), ("a", "b", "smiling"), 2)
    assert metrics["rank1"] == 0.5


def test_attributes_beside_identities_have_means_of_their_own() -> None:
    beside = evaluate_scores(SCORES, TARGETS, KNOWN, torch.full((60,), -1), ("a", "smiling", "bald"), 1)
    alone = evaluate_scores(SCORES[:, 1:], TARGETS[:, 1:], KNOWN[:, 1:], torch.full((60,), -1), ("smiling", "bald"), 0)
    for name in ("auroc", "balanced_accuracy"):
        assert beside[f"attributes_{name}"] == alone[name]
        assert f"attributes_{name}" not in alone


def test_a_one_sided_task_is_undefined_and_left_out_of_mean_and_worst() -> None:
    targets = TARGETS.clone()
    targets[:, 1] = False
    metrics = evaluate_scores(SCORES, targets, KNOWN, torch.full((60,), -1), ("a", "b", "c"), 0)
    assert metrics["b/auroc"] is None
    assert metrics["b/balanced_accuracy"] is None
    a, c = metrics["a/auroc"], metrics["c/auroc"]
    assert a is not None
    assert c is not None
    assert metrics["auroc"] == pytest.approx((a + c) / 2)
    assert metrics["worst_task_auroc"] == min(a, c)
    assert "rank1" not in metrics


def test_one_subtask_is_enough() -> None:
    scores, targets = torch.tensor([[2.0], [-1.0], [1.0]]), torch.tensor([[True], [False], [False]])
    metrics = evaluate_scores(scores, targets, torch.ones(3, 1, dtype=torch.bool), torch.tensor([0, -1, -1]), ("a",), 1)
    assert metrics["balanced_accuracy"] == 0.75
    assert metrics["auroc"] == 1.0


def test_equal_scores_everywhere_are_a_coin() -> None:
    assert (
        auroc(torch.zeros(4, 1), torch.tensor([[True], [False], [True], [False]]), torch.ones(4, 1, dtype=torch.bool)).item()
        == 0.5
    )


def test_no_threshold_is_better_than_the_best() -> None:
    thresholds = best_thresholds(SCORES, TARGETS, KNOWN)
    found = balanced_accuracy(SCORES - thresholds, TARGETS, KNOWN)
    for shift in torch.linspace(-60, 60, 601):
        assert (balanced_accuracy(SCORES - shift, TARGETS, KNOWN) <= found + 1e-9).all()
    # Nothing is known of it: zero. Of thresholds that are equally good, the nearest to zero: here itself.
    assert best_thresholds(SCORES, TARGETS, torch.zeros_like(KNOWN)).tolist() == [0.0, 0.0, 0.0]
    assert best_thresholds(torch.tensor([[-3.0], [5.0]]), torch.tensor([[False], [True]]), torch.ones(2, 1).bool()).tolist() == [
        0.0
    ]


def test_the_worst_tenth_of_the_clients_by_hand() -> None:
    metrics = {"a/auroc": 0.9, "b/auroc": 0.5, "c/auroc": None}
    trains = [[True, False, False]] * 18 + [[True, True, False], [False, True, True], [False, False, True]]
    # Twenty clients have a value: the worst two have .5 (c is undefined) and .7.
    assert worst_clients(metrics, ("a", "b", "c"), torch.tensor(trains)) == pytest.approx(0.6)
    assert worst_clients(metrics, ("a", "b", "c"), torch.tensor(trains[18:20])) == pytest.approx(0.5)
    assert worst_clients(metrics, ("c",), torch.tensor([[True]])) is None
