import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtl.losses.bce import BCE
from mtl.losses.pairs import PairLoss, TaskCounts, check_reduction, reduce_pairs
from mtl.losses.sphereface2 import SphereFace2, initial_bias

COUNTS = TaskCounts(torch.tensor([2.0, 0.0, 5.0]), torch.tensor([6.0, 8.0, 0.0]))
LOSSES: list[PairLoss] = [BCE(3), BCE(3, positive_weight="balanced"), SphereFace2(3)]


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


def test_bce_with_a_positive_weight_agrees_with_torch() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 3, generator=rng), torch.rand(7, 3, generator=rng) < 0.4
    everything = torch.ones(7, 3, dtype=torch.bool)
    ours = reduce_pairs(
        *BCE(3, positive_weight=2.5).terms(logits, COUNTS), targets, everything, everything[:, 0], reduction="sum"
    )
    theirs = nn.functional.binary_cross_entropy_with_logits(
        logits, targets.float(), pos_weight=torch.tensor(2.5), reduction="none"
    )
    assert torch.allclose(ours.tasks, theirs.sum(0))


def test_balanced_weight_is_negatives_over_positives_and_one_where_a_kind_is_missing() -> None:
    positive, _ = BCE(3, positive_weight="balanced").terms(torch.zeros(1, 3), COUNTS)
    assert (positive / math.log(2)).tolist()[0] == pytest.approx([3.0, 1.0, 1.0])


def test_sphereface2_agrees_with_the_paper_worked_out_by_hand() -> None:
    loss = SphereFace2(40, balance=0.7, scale=40, margin=0.4, sharpness=3, weight=50)
    cosine, bias = 0.6, float(loss.bias.detach())
    spread = 2 * 0.8**3 - 1
    positive, negative = loss.terms(torch.tensor([[cosine]]), COUNTS)
    assert positive.item() == pytest.approx(50 * 0.7 / 40 * math.log(1 + math.exp(-40 * (spread - 0.4) - bias)), rel=1e-4)
    assert negative.item() == pytest.approx(50 * 0.3 / 40 * math.log(1 + math.exp(40 * (spread + 0.4) + bias)), rel=1e-4)


def test_sphereface2_starts_where_the_published_formula_says() -> None:
    # 11.2 is the value for 40 classes with the class defaults of the authors' code.
    assert initial_bias(40, 0.7, 40, 0.4, 3) == pytest.approx(11.2, abs=0.05)
    # Two classes and a soft scale: z > 1, where the formula as printed does not yet cancel.
    z, a, b = 0.7 / 0.3, 2.5 * (0.25 - 1.4), 2.5 * (0.25 - 0.6)
    printed = math.log(2 * z) - b - math.log(1 - z + math.sqrt((1 - z) ** 2 + 4 * z * math.exp(a - b)))
    assert initial_bias(2, 0.7, 2.5, 0.4, 3) == pytest.approx(printed)


@pytest.mark.parametrize("loss", LOSSES)
@given(st.floats(-1, 1), st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_a_better_score_costs_a_positive_less_and_a_negative_more(loss: PairLoss, low: float, high: float) -> None:
    low, high = sorted((low, high))
    positive, negative = loss.terms(torch.tensor([[low] * 3, [high] * 3]), COUNTS)
    assert (positive[1] <= positive[0] + 1e-6).all()
    assert (negative[1] >= negative[0] - 1e-6).all()
    decision = loss.decision(torch.tensor([low, high]))
    assert decision[1] >= decision[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_and_unknown_labels_have_no_influence_even_if_not_finite(loss: PairLoss) -> None:
    rng = torch.Generator().manual_seed(1)
    logits = torch.rand(6, 3, generator=rng).requires_grad_()
    spoiled = logits.detach().clone()
    spoiled[5] = torch.nan
    spoiled[2, 1] = torch.inf
    spoiled.requires_grad_()
    targets = torch.rand(6, 3, generator=rng) < 0.5
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[2, 1] = False
    valid = torch.tensor([True] * 5 + [False])
    clean, dirty = (reduce_pairs(*loss.terms(z, COUNTS), targets, mask, valid) for z in (logits, spoiled))
    assert torch.equal(clean.tasks, dirty.tasks)
    targets[5], targets[2, 1] = ~targets[5], ~targets[2, 1]
    other = reduce_pairs(*loss.terms(logits, COUNTS), targets, mask, valid)
    assert torch.equal(clean.tasks, other.tasks)


@pytest.mark.parametrize("loss", LOSSES)
def test_tasks_in_another_order_give_losses_in_that_order(loss: PairLoss) -> None:
    order = torch.tensor([2, 0, 1])
    logits, targets = torch.rand(5, 3), torch.rand(5, 3) < 0.5
    everything = torch.ones(5, 3, dtype=torch.bool)
    straight = reduce_pairs(*loss.terms(logits, COUNTS), targets, everything, everything[:, 0])
    turned = TaskCounts(COUNTS.positives[order], COUNTS.negatives[order])
    permuted = reduce_pairs(*loss.terms(logits[:, order], turned), targets[:, order], everything, everything[:, 0])
    assert torch.allclose(straight.positive[order], permuted.positive)
    assert torch.allclose(straight.negative[order], permuted.negative)


def test_a_task_without_known_labels_costs_nothing() -> None:
    nothing = torch.zeros(4, 3, dtype=torch.bool)
    for reduction in ("mean", "known", "sum"):
        losses = reduce_pairs(torch.ones(4, 3), torch.ones(4, 3), nothing, nothing, nothing[:, 0], reduction=reduction)
        assert losses.tasks.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BCE(3, positive_weight=0), "loss.positive_weight must be a number > 0 or balanced, got 0"),
        (lambda: BCE(3, positive_weight="auto"), "got auto"),
        (lambda: SphereFace2(3, balance=1.0), r"loss.balance must be in \(0, 1\), got 1.0"),
        (lambda: SphereFace2(1), "at least 2 subtasks, got 1"),
        (lambda: check_reduction("avg"), "must be one of mean, known, sum, got avg"),
    ],
)
def test_wrong_options_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
