import math

import pytest
import torch

from mtl.losses.pairs import TaskCounts
from mtl.losses.sphereface2 import SphereFace2, initial_bias

COUNTS = TaskCounts(torch.ones(1), torch.ones(1))


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


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.balance must be in \(0, 1\), got 1.0"):
        SphereFace2(3, balance=1.0)
    with pytest.raises(ValueError, match="at least 2 subtasks, got 1"):
        SphereFace2(1)
