import math

import numpy as np
import pytest
import torch

from mtl.losses.asymmetric import Asymmetric
from mtl.losses.pairs import TaskCounts

COUNTS = TaskCounts(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(("gamma_positive", "gamma_negative", "clip"), [(1, 4, 0.05), (0, 2, 0.2), (0.5, 0.5, 0), (2, 0, 0.3)])
def test_terms_and_gradients_agree_with_the_paper_in_double_precision(
    gamma_positive: float, gamma_negative: float, clip: float
) -> None:
    logits = torch.linspace(-7, 7, 57, dtype=torch.float64)[:, None].requires_grad_()
    z = logits.detach().numpy()
    p = 1 / (1 + np.exp(-z))
    q = np.maximum(p - clip, 0)
    loss = Asymmetric(1, gamma_positive=gamma_positive, gamma_negative=gamma_negative, clip=clip)
    positive, negative = loss.terms(logits, COUNTS)
    assert positive.detach().numpy() == pytest.approx(-((1 - p) ** gamma_positive) * np.log(p), rel=1e-6)
    assert negative.detach().numpy() == pytest.approx(-(q**gamma_negative) * np.log(1 - q), rel=1e-5, abs=1e-8)
    # The derivative as the paper's analysis of gradients has it, away from q = 0.
    (slope,) = torch.autograd.grad(negative.sum(), logits)
    away = q > 1e-3
    expected = q[away] ** gamma_negative * (1 / (1 - q) - gamma_negative * np.log(1 - q) / np.maximum(q, 1e-9))[away]
    assert slope.numpy()[away] == pytest.approx(expected * (p * (1 - p))[away], rel=1e-4)


def test_asymmetric_by_hand() -> None:
    # p = 1/2: L+ = 1/2 ln 2; q = .45, L- = .45^4 (-ln .55).
    positive, negative = Asymmetric(1).terms(torch.zeros(1, 1), COUNTS)
    assert positive.item() == pytest.approx(math.log(2) / 2)
    assert negative.item() == pytest.approx(0.45**4 * -math.log(0.55))


def test_the_slopes_are_those_that_the_docstring_sets_beside_the_authors() -> None:
    """At p = 1/2 by hand. With constant factors -(1 - p)^2 and q^4 p (1 - p) / (1 - q); else the factors' own slopes come on top."""
    logits = torch.zeros(1, 1, requires_grad=True)
    slopes = [
        torch.autograd.grad(term.sum(), logits, retain_graph=True)[0].item() for term in Asymmetric(1).terms(logits, COUNTS)
    ]
    constant = [-0.25, 0.45**4 * 0.25 / 0.55]
    assert constant == pytest.approx([-0.250, 0.019], abs=5e-4)
    assert slopes == pytest.approx([constant[0] - 0.25 * math.log(2), constant[1] - 4 * 0.45**3 * 0.25 * math.log(0.55)])
    assert slopes == pytest.approx([-0.423, 0.073], abs=5e-4)


def test_a_negative_below_the_clip_costs_nothing_and_a_hopeless_one_no_longer_pulls() -> None:
    # sigmoid(-3) = .047 < .05.
    logits = torch.tensor([[-3.0], [2.0], [30.0]], requires_grad=True)
    _, negative = Asymmetric(1).terms(logits, COUNTS)
    (slope,) = torch.autograd.grad(negative.sum(), logits)
    assert negative[0] == 0
    assert slope[0] == 0
    assert slope[2] < 1e-6 < slope[1]
    # Above, q = .95, so L- stays below -.95^4 ln .05.
    assert negative[2].item() == pytest.approx(-(0.95**4) * math.log(0.05), rel=1e-5)


def test_a_clip_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.clip must be a number in \[0, 1\), got 1"):
        Asymmetric(1, clip=1)
