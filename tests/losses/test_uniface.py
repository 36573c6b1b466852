import math

import pytest
import torch

from mtl.losses.pairs import TaskCounts
from mtl.losses.uniface import UniFace

COUNTS = TaskCounts(torch.ones(1), torch.ones(1))


def test_uniface_agrees_with_the_paper_worked_out_by_hand() -> None:
    loss = UniFace(40, scale=10, margin=0.4, negative_weight=0.5)
    # b = ln 400; at cosine .9 the margin leaves 10 (.9 - .4) = 5 and the negative sees 9.
    positive, negative = loss.terms(torch.tensor([[0.9]]), COUNTS)
    assert positive.item() == pytest.approx(math.log(1 + 400 * math.exp(-5)), rel=1e-6)
    assert negative.item() == pytest.approx(0.5 * math.log(1 + math.exp(9) / 400), rel=1e-6)


def test_one_cosine_separates_yes_from_no_for_every_subtask() -> None:
    loss = UniFace(3, margin=[0.1, 0.2, 0.4], negative_weight=[1, 2, 3])
    threshold = math.log(30) / 64
    decision = loss.decision(torch.tensor([[threshold - 0.001] * 3, [threshold + 0.001] * 3]))
    assert (decision[0] < 0).all()
    assert (decision[1] > 0).all()


def test_the_threshold_is_learned_from_both_kinds_of_label() -> None:
    loss = UniFace(3)
    positive, negative = loss.terms(torch.full((1, 3), 0.2), COUNTS)
    # A higher b makes yes rarer: dearer for a positive, cheaper for a negative.
    assert torch.autograd.grad(positive.sum(), loss.bias, retain_graph=True)[0] > 0
    assert torch.autograd.grad(negative.sum(), loss.bias)[0] < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "loss.scale must be > 0, got 0.0"),
        ({"margin": -0.1}, "loss.margin must be a number >= 0, got -0.1"),
        ({"negative_weight": 0}, "loss.negative_weight must be a number > 0, got 0"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniFace(2, **options)  # type: ignore[arg-type]
