import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from mtl.losses.focal import Focal
from mtl.losses.pairs import TaskCounts

COUNTS = TaskCounts(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, None), (0.5, 0.9), (0.0, 0.0), (3.0, 1.0)])
def test_focal_agrees_with_torchvision(gamma: float, alpha: float | None) -> None:
    logits = (torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 4).requires_grad_()
    terms = Focal(3, gamma=gamma, alpha=alpha).terms(logits, COUNTS)
    for result, target in zip(terms, (1.0, 0.0), strict=True):
        # torchvision writes "no alpha" as -1.
        expected = sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha=-1 if alpha is None else alpha, gamma=gamma)
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(
            *(torch.autograd.grad(t.sum(), logits, retain_graph=True)[0] for t in (result, expected)), atol=1e-6, rtol=1e-4
        )


def test_focal_by_hand() -> None:
    # z = ln 3: p = 3/4. L+ = 1/4 (1/4)^2 ln(4/3), L- = 3/4 (3/4)^2 ln 4.
    positive, negative = Focal(1).terms(torch.tensor([[math.log(3)]]), COUNTS)
    assert positive.item() == pytest.approx(math.log(4 / 3) / 64)
    assert negative.item() == pytest.approx(27 / 64 * math.log(4))


def test_options_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.gamma must be a number >= 0, got -1"):
        Focal(3, gamma=-1)
    with pytest.raises(ValueError, match=r"loss.alpha must be a number in \[0, 1\], got 2"):
        Focal(3, alpha=[0.5, 2, 0.5])
