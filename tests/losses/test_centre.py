"""Centre targets and losses against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.losses.centre import centre_losses, centre_targets, splat_radius


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    both = max(across, 0) * max(down, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return both / (sum(areas) - both)


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 50), st.floats(1, 50))
def test_corners_moved_by_the_radius_keep_the_overlap_and_no_larger_move_does(width: float, height: float) -> None:
    r = float(splat_radius(torch.tensor([width, height], dtype=torch.float64)))
    box = (0.0, 0.0, width, height)

    def least(by: float) -> float:
        moved = [(by, by, width + by, height + by), (by, by, width - by, height - by), (-by, -by, width + by, height + by)]
        return min(overlap(box, other) for other in moved)

    assert least(r) == pytest.approx(0.7, abs=1e-9)
    assert least(1.01 * r) < 0.7


def test_targets_of_one_face_are_those_worked_out_by_hand() -> None:
    # Stride 4: the centre (18, 11) is 4.5, 2.75 cells; the size 12 x 8 is 3 x 2 cells.
    boxes = torch.tensor([[[12.0, 7, 24, 15], [0.0, 0, 0, 0]]])
    targets = centre_targets(boxes, torch.tensor([[True, False]]), (6, 8), 4)
    assert targets.cell[0].tolist() == [2 * 8 + 4, 0]
    assert targets.offset[0, 0].tolist() == pytest.approx([0.5, 0.75])
    assert targets.log_size[0, 0].tolist() == pytest.approx([math.log(3), math.log(2)])
    # The least of the three radii is that of both corners inwards: (5 - sqrt(25 - 4 * 6 * .3)) / 4.
    sigma = (2 * (5 - math.sqrt(25 - 7.2)) / 4 + 1) / 6
    assert targets.heat[0, 2, 4] == 1
    assert float(targets.heat[0, 2, 5]) == pytest.approx(math.exp(-1 / (2 * sigma**2)))
    assert float(targets.heat[0, 3, 5]) == pytest.approx(math.exp(-2 / (2 * sigma**2)))
    assert float(targets.heat.sum()) == pytest.approx(
        1 + 4 * math.exp(-1 / (2 * sigma**2)) + 4 * math.exp(-2 / (2 * sigma**2)), rel=1e-2
    )


def test_where_two_faces_meet_the_higher_splat_counts() -> None:
    boxes = torch.tensor([[[0.0, 0, 40, 40], [8.0, 0, 48, 40]]])
    both = centre_targets(boxes, torch.ones(1, 2, dtype=torch.bool), (12, 12), 4)
    alone = [centre_targets(boxes[:, i : i + 1], torch.ones(1, 1, dtype=torch.bool), (12, 12), 4).heat for i in range(2)]
    assert torch.equal(both.heat, torch.maximum(*alone))
    assert int((both.heat == 1).sum()) == 2


def test_losses_are_those_worked_out_by_hand() -> None:
    # One face in the middle of 1 x 3 cells; heat .5, 1, .5; all probabilities one half.
    targets = centre_targets(torch.tensor([[[4.0, 0, 8, 4]]]), torch.ones(1, 1, dtype=torch.bool), (1, 3), 4)
    neighbour = float(targets.heat[0, 0, 0])
    maps = torch.zeros(1, 5, 1, 3)
    maps[0, 1:, 0, 1] = torch.tensor([0.25, 0.5, 0.3, -0.4])
    losses = centre_losses(maps, targets)
    half = 0.25 * math.log(2)
    assert losses.positive.tolist() == pytest.approx([half, 0.25 + 0.0, 0.3 + 0.4])
    assert losses.negative.tolist() == pytest.approx([2 * (1 - neighbour) ** 4 * half, 0, 0])


def test_padding_and_empty_scenes_have_no_influence() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 6, 6, generator=generator)
    boxes = torch.tensor([[[4.0, 4, 20, 20], [50.0, 50, 60, 61]], [[0.0, 0, 0, 0], [0.0, 0, 0, 0]]])
    valid = torch.tensor([[True, False], [False, False]])
    padded = centre_losses(maps, centre_targets(boxes, valid, (6, 6), 4))
    cut = [centre_losses(maps[:1], centre_targets(boxes[:1, :1], valid[:1, :1], (6, 6), 4))]
    empty = centre_losses(maps[1:], centre_targets(boxes[1:, :0], valid[1:, :0], (6, 6), 4))
    assert torch.allclose(padded.positive, cut[0].positive)
    assert torch.allclose(padded.negative, cut[0].negative + empty.negative)
    assert empty.positive.tolist() == [0, 0, 0]


def test_gradients_are_finite_at_large_logits() -> None:
    maps = torch.full((1, 5, 4, 4), 60.0, requires_grad=True)
    losses = centre_losses(maps, centre_targets(torch.tensor([[[2.0, 2, 9, 9]]]), torch.ones(1, 1, dtype=torch.bool), (4, 4), 4))
    (losses.tasks.sum()).backward()
    assert maps.grad is not None
    assert bool(maps.grad.isfinite().all())
