from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.toy_2d import CAGRAD, FAMO_SETTING, NASH, draw_figure, evaluate, run, verdicts


def published(x: Tensor) -> Tensor:
    """The two losses at x [2], written as in CAGrad's toy.py, with both branches reached at zero."""
    x1, x2 = x
    lower = torch.tensor(5e-6, dtype=x.dtype)
    log1 = torch.maximum((0.5 * (-x1 - 7) - torch.tanh(-x2)).abs(), lower).log() + 6
    log2 = torch.maximum((0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs(), lower).log() + 6
    t = torch.tanh(x2 * 0.5)
    c1, c2 = torch.where(t >= 0, t, 0), torch.where(-t >= 0, -t, 0)
    square1 = ((-x1 + 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    square2 = ((-x1 - 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    return torch.stack([log1 * c1 + square1 * c2, log2 * c1 + square2 * c2])


def test_losses_and_gradients_are_those_of_the_published_code() -> None:
    points = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 22 - 11
    points = torch.cat([points, torch.tensor([[0.0, 0.0], [3.0, 0.0], *CAGRAD.starts, *NASH.starts], dtype=torch.float64)])
    losses, gradients = evaluate(points, 1.0)
    torch.testing.assert_close(losses, torch.stack([published(x) for x in points]))
    jacobian = torch.stack([torch.autograd.functional.jacobian(published, x) for x in points])
    torch.testing.assert_close(gradients, jacobian)
    scaled_losses, scaled_gradients = evaluate(points, 0.1)
    torch.testing.assert_close(scaled_losses, losses * torch.tensor([0.1, 1.0], dtype=torch.float64))
    torch.testing.assert_close(scaled_gradients[:, 0], 0.1 * gradients[:, 0])


def test_a_start_on_the_kink_moves() -> None:
    path = run(replace(NASH, starts=((0.0, 0.0),)), steps=2)
    assert ((path[-1] - path[0]).abs().amax(-1) > 1e-4).all()


def test_every_method_gets_a_row_and_a_panel(tmp_path: Path) -> None:
    paths = [(setting, run(setting, steps=3)) for setting in (CAGRAD, NASH, FAMO_SETTING)]
    rows = [row for setting, path in paths for row in verdicts(setting, path[-1])]
    assert len(rows) == 4 * 3 + 5 * 5 + 5
    assert not all(near for _, near in rows)
    draw_figure(paths, tmp_path / "made" / "toy.png")
    assert (tmp_path / "made" / "toy.png").stat().st_size > 10_000
