"""Crops, alignment and equalisation against numpy and hand values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl.data.warp import FIVE_POINTS, align, crop_boxes, crop_placement, equalise, similarity, warp

IDENTITY = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])


def ramp(height: int, width: int) -> Tensor:
    """[1, 2, H, W]: the x and y of each pixel's centre, so that what is seen tells where from."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])[None]


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Equations 34 to 42 of the paper, by its singular value decomposition. [n, 2] both."""
    x_mean, y_mean = source.mean(0), target.mean(0)
    covariance = (target - y_mean).T @ (source - x_mean) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    s = np.diag([1.0, 1.0 if np.linalg.det(u) * np.linalg.det(vt) > 0 else -1.0])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / (source - x_mean).var(0).sum()
    return np.concatenate([scale * rotation, (y_mean - scale * rotation @ x_mean)[:, None]], 1)


def test_the_identity_changes_nothing() -> None:
    images = torch.rand(3, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(warp(images, IDENTITY.expand(3, 2, 3), (7, 5)), images, atol=1e-6)


def test_a_pixel_shows_the_point_that_its_placement_says() -> None:
    turned = torch.tensor([[[0.0, -1.0, 11.0], [1.0, 0.0, 2.0]]])
    seen = warp(ramp(16, 16), turned, (3, 4))
    # The output's pixel in row 1, column 2 has its centre at (2.5, 1.5).
    assert seen[0, :, 1, 2].tolist() == pytest.approx([11 - 1.5, 2 + 2.5], abs=1e-4)


def test_a_crop_shows_the_box_whole_and_in_proportion() -> None:
    # A box of 8 x 4 in a square crop of 4: scale 2, so 8 x 8 pixels around (8, 9) are seen.
    box = torch.tensor([[4.0, 7.0, 12.0, 11.0]])
    assert torch.allclose(crop_placement(box, (4, 4)), torch.tensor([[[2.0, 0, 4], [0, 2, 5]]]))
    crop = crop_boxes(ramp(20, 20), box, (4, 4))
    assert torch.allclose(crop[0, 0, 0], torch.tensor([5.0, 7, 9, 11]), atol=1e-4)
    assert torch.allclose(crop[0, 1, :, 0], torch.tensor([6.0, 8, 10, 12]), atol=1e-4)
    wider = crop_placement(box, (4, 4), margin=0.5)
    assert torch.allclose(wider, torch.tensor([[[3.0, 0, 2], [0, 3, 3]]]))


def test_shrinking_by_a_whole_number_is_the_mean_of_the_blocks() -> None:
    images = torch.rand(2, 1, 12, 6, generator=torch.Generator().manual_seed(1))
    shrunk = warp(images, 3 * IDENTITY.expand(2, 2, 3), (4, 2))
    assert torch.allclose(shrunk, images.unflatten(2, (4, 3)).unflatten(4, (2, 3)).mean((3, 5)), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_the_similarity_is_umeyamas(seed: int, number: int) -> None:
    source, target = torch.randn(2, 3, number, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ours = similarity(source, target).numpy()
    for one, x, y in zip(ours, source.numpy(), target.numpy(), strict=True):
        assert one == pytest.approx(umeyama(x, y), abs=1e-9)


def test_a_similarity_of_one_point_is_a_shift() -> None:
    source = torch.ones(1, 3, 2)
    target = torch.tensor([[[1.0, 5], [3, 5], [5, 5]]])
    assert torch.allclose(similarity(source, target), torch.tensor([[[1.0, 0, 2], [0, 1, 4]]]))


def test_alignment_puts_the_five_points_where_the_template_has_them() -> None:
    # The template turned by 30 degrees, half as large, somewhere in a larger picture.
    angle, template = math.radians(30), torch.tensor(FIVE_POINTS)
    turn = 0.5 * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = template @ turn.T + torch.tensor([70.0, 40.0])
    aligned = align(ramp(160, 160), points[None], (112, 112))
    for (x, y), place in zip(FIVE_POINTS, points, strict=True):
        column, row = int(x), int(y)
        expected = turn @ torch.tensor([column + 0.5, row + 0.5]) + torch.tensor([70.0, 40.0])
        assert torch.allclose(aligned[0, :, row, column], expected, atol=1e-2)
        assert float((expected - place).norm()) < 0.5


def test_equalised_levels_are_those_worked_out_by_hand() -> None:
    # Levels 52 52 52 60, 60 200 200 255 of 255: F = 3, 5, 7, 8, F_min = 3, n = 8: 0, 2/5, 4/5, 1.
    image = torch.tensor([[52.0, 52, 52, 60], [60, 200, 200, 255]])[None, None] / 255
    expected = torch.tensor([[0.0, 0, 0, 0.4], [0.4, 0.8, 0.8, 1.0]])
    assert torch.allclose(equalise(image)[0, 0], expected)


def test_each_channel_of_each_picture_is_equalised_by_itself_and_an_even_one_stays() -> None:
    images = torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(2)) * 0.3
    images[1, 1] = 0.25
    batched = equalise(images)
    for i in range(2):
        for c in range(2):
            assert torch.equal(batched[i, c], equalise(images[i : i + 1, c : c + 1])[0, 0])
    assert torch.equal(batched[1, 1], images[1, 1])
    assert float(batched[0, 0].min()) == 0
    assert float(batched[0, 0].max()) == 1
