import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from mtl.metrics.scores import auroc, balanced_accuracy, best_thresholds, evaluate_scores, rank1, share_of_highest, worst_clients

RNG = torch.Generator().manual_seed(0)
SCORES = torch.randn(60, 3, generator=RNG) * 20
TARGETS = torch.rand(60, 3, generator=RNG) < 0.3
KNOWN = torch.rand(60, 3, generator=RNG) < 0.8


def test_auroc_agrees_with_scikit_learn_on_known_labels() -> None:
    result = auroc(SCORES, TARGETS, KNOWN)
    for t in range(3):
        known = KNOWN[:, t]
        assert result[t] == pytest.approx(roc_auc_score(TARGETS[known, t], SCORES[known, t]), abs=1e-6)


def test_auroc_tells_large_scores_apart() -> None:
    scores = torch.tensor([[40.0], [41.0], [42.0], [43.0]])  # a sigmoid in float32 makes these all 1
    assert auroc(scores, torch.tensor([[False], [True], [False], [True]]), torch.ones(4, 1, dtype=torch.bool)).item() == 0.75


@pytest.mark.parametrize(("other", "area"), [(1e18, 2.5), (-3e38, 2.5), (torch.inf, 2.5), (-torch.inf, 2.5), (1e-30, 3.5)])
def test_auroc_of_a_task_does_not_depend_on_the_scores_of_another(other: float, area: float) -> None:
    """By hand. First task: of the pairs (1, 0) (1, 2) (3, 0) (3, 2) three are in order. Second: (other, 0) (other, other) (1, 0)
    (1, other), of which the equal one is a half and one of the first and the last is in order, or both where 0 < other < 1.
    """
    scores = torch.tensor([[0.0, other], [1.0, 0.0], [2.0, 1.0], [3.0, other]])
    targets, known = torch.tensor([[False, True], [True, False]] * 2), torch.ones(4, 2, dtype=torch.bool)
    assert auroc(scores, targets, known).tolist() == [0.75, area / 4]


def test_auroc_of_many_tied_scores_agrees_with_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(1)
    scores = (torch.randn(100_000, 2, generator=rng) * 3).round() * torch.tensor([1e-20, 1e20])
    targets = torch.rand(100_000, 2, generator=rng) < torch.sigmoid(scores / torch.tensor([1e-20, 1e20]))
    result = auroc(scores, targets, torch.ones_like(targets))
    for t in range(2):
        assert result[t].item() == pytest.approx(roc_auc_score(targets[:, t], scores[:, t].double()), abs=1e-12)


def test_balanced_accuracy_agrees_with_scikit_learn_on_known_labels() -> None:
    result = balanced_accuracy(SCORES, TARGETS, KNOWN)
    for t in range(3):
        known = KNOWN[:, t]
        assert result[t] == pytest.approx(balanced_accuracy_score(TARGETS[known, t], SCORES[known, t] > 0), abs=1e-6)


def test_rank1_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.2, 0.3], [0.9, 0.1], [5.0, 0.0]])
    assert rank1(scores, torch.tensor([0, 1, 1, -1])) == pytest.approx(2 / 3)


def test_constant_scores_know_nobody_wherever_they_stand() -> None:
    for person in range(4):
        assert rank1(torch.zeros(8, 4), torch.full((8,), person)) == 0.25


def test_equal_highest_scores_share_the_answer() -> None:
    scores = torch.tensor([[2.0, 2.0, 1.0], [1.0, 2.0, 2.0], [torch.inf, torch.inf, torch.inf], [0.0, 3.0, 2.0]])
    target = torch.tensor([0, 0, 2, 1])
    assert share_of_highest(scores, target).tolist() == pytest.approx([1 / 2, 0, 1 / 3, 1])
    assert rank1(scores, target) == pytest.approx((1 / 2 + 1 / 3 + 1) / 4)


def test_a_score_that_is_no_number_names_its_subtask() -> None:
    scores, known = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)
    targets, identity = torch.tensor([[True, False], [False, True], [False, False]]), torch.tensor([0, 1, -1])
    scores[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"scores must be numbers, got NaN for 1 of 3 images in subtask smiling$"):
        evaluate_scores(scores, targets, known, identity, ("anna", "smiling"), 1)
    for metric in (auroc, balanced_accuracy, best_thresholds):
        with pytest.raises(ValueError, match=r"in subtask 1$"):
            metric(scores, targets, known)
    with pytest.raises(ValueError, match=r"in subtask 1$"):
        rank1(scores, identity)


def test_rank1_is_among_the_subtasks_that_exclude_one_another() -> None:
    scores = torch.tensor([[1.0, 0.0, 5.0], [0.2, 0.3, 5.0]])
    known = torch.ones(2, 3, dtype=torch.bool)
    metrics = evaluate_scores(scores, known, known, torch.tensor([0, 0]), ("a", "b", "smiling"), 2)
    assert metrics["rank1"] == 0.5


def test_attributes_beside_identities_have_means_of_their_own() -> None:
    with_identities = evaluate_scores(SCORES, TARGETS, KNOWN, torch.full((60,), -1), ("a", "smiling", "bald"), 1)
    alone = evaluate_scores(SCORES[:, 1:], TARGETS[:, 1:], KNOWN[:, 1:], torch.full((60,), -1), ("smiling", "bald"), 0)
    for name in ("auroc", "balanced_accuracy"):
        assert with_identities[f"attributes_{name}"] == alone[name]
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
    best = balanced_accuracy(SCORES - thresholds, TARGETS, KNOWN)
    for shift in torch.linspace(-60, 60, 601):
        assert (balanced_accuracy(SCORES - shift, TARGETS, KNOWN) <= best + 1e-9).all()
    # Nothing is known of it: zero. Of thresholds that are equally good, the nearest to zero: here itself.
    assert best_thresholds(SCORES, TARGETS, torch.zeros_like(KNOWN)).tolist() == [0.0, 0.0, 0.0]
    assert best_thresholds(torch.tensor([[-3.0], [5.0]]), torch.tensor([[False], [True]]), torch.ones(2, 1).bool()).tolist() == [
        0.0
    ]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-torch.inf, torch.inf),
        (5.0, torch.inf),
        (-torch.inf, -5.0),
        (2e38, 3e38),
        (1.0, 1.0 + 2**-23),
        (1.0 + 2**-23, 1.0 + 2**-22),
    ],
)
def test_the_best_threshold_parts_two_scores_however_far_or_near(low: float, high: float) -> None:
    scores = torch.tensor([[low], [high]])
    threshold = best_thresholds(scores, torch.tensor([[False], [True]]), torch.ones(2, 1).bool())
    assert threshold.isfinite().all()
    assert (scores > threshold).flatten().tolist() == [False, True]


def test_thresholds_of_many_images_are_the_best_of_a_grid() -> None:
    rng = torch.Generator().manual_seed(2)
    targets = torch.rand(100_000, 1, generator=rng) < 0.1
    scores = torch.randn(100_000, 1, generator=rng) + 2 * targets
    threshold = best_thresholds(scores, targets, torch.ones_like(targets))
    # Normal scores with means 0 and 2 of one width: half way, at 1.
    assert threshold.item() == pytest.approx(1, abs=0.1)


def test_the_worst_tenth_of_the_clients_by_hand() -> None:
    metrics = {"a/auroc": 0.9, "b/auroc": 0.5, "c/auroc": None}
    trains = [[True, False, False]] * 18 + [[True, True, False], [False, True, True], [False, False, True]]
    # Twenty clients have a value: the worst two have .5 (c is undefined) and .7.
    assert worst_clients(metrics, ("a", "b", "c"), torch.tensor(trains)) == pytest.approx(0.6)
    assert worst_clients(metrics, ("a", "b", "c"), torch.tensor(trains[18:20])) == pytest.approx(0.5)
    assert worst_clients(metrics, ("c",), torch.tensor([[True]])) is None
