"""Composed scenes: what is said to be in them is in them, and a draw depends on its name alone."""

import dataclasses

import pytest
import torch

from mtl.data.faces import orl
from mtl.data.scene_drawing import OVAL, _paste, _shuffle
from mtl.data.scene_transforms import SCENE_DRAWS, SceneAugmentation
from mtl.data.scenes import SceneSet, orl_scenes, scene_faces

SMALL = {"image_size": (96, 96), "face_height": (24.0, 60.0), "max_faces": 3}


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return orl_scenes(scenes=(24, 6, 24), photographs=(5, 1, 4), **SMALL)  # type: ignore[arg-type]


def test_boxes_lie_in_the_scene_touch_no_other_and_padding_is_empty(scenes: SceneSet) -> None:
    assert scenes.images.shape == (54, 1, 96, 96)
    assert scenes.images.dtype == torch.uint8
    assert scenes.valid.sum(1).tolist() == scenes.counts.tolist()
    assert set(scenes.counts.tolist()) == {0, 1, 2, 3}
    for boxes, count, identity in zip(scenes.boxes, scenes.counts.tolist(), scenes.identity, strict=True):
        assert bool((boxes[:count, :2] >= 0).all())
        assert bool((boxes[:count, 2:] <= 96).all())
        assert bool((boxes[count:] == 0).all())
        assert bool((identity[:count] >= 0).all())
        assert bool((identity[count:] == -1).all())
        for i in range(count):
            for j in range(i):
                apart = (boxes[i, 2:] <= boxes[j, :2]) | (boxes[i, :2] >= boxes[j, 2:])
                assert bool(apart.any())


def test_a_scene_depends_on_the_seed_its_part_and_its_number_alone(scenes: SceneSet) -> None:
    fewer = orl_scenes(scenes=(5, 0, 3), photographs=(5, 1, 4), **SMALL)  # type: ignore[arg-type]
    for name in ("images", "boxes", "identity"):
        assert torch.equal(getattr(fewer, name)[:5], getattr(scenes, name)[:5])
        assert torch.equal(getattr(fewer, name)[5:], getattr(scenes, name)[scenes.part(2)[:3]])
    other = orl_scenes(scenes=(5, 0, 3), photographs=(5, 1, 4), seed=1, **SMALL)  # type: ignore[arg-type]
    assert not torch.equal(other.images, fewer.images)


def test_no_photograph_of_a_test_scene_is_in_a_training_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.data import scenes as module

    shown: list[torch.Tensor] = []
    draw = module.draw_scenes

    def spy(key: torch.Tensor, photographs: torch.Tensor, style: object) -> object:
        shown.append(photographs)
        return draw(key, photographs, style)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "draw_scenes", spy)
    orl_scenes(scenes=(2, 2, 2), photographs=(4, 2, 4), seed=5, **SMALL)  # type: ignore[arg-type]
    sets = [{photograph.numpy().tobytes() for photograph in part} for part in shown]
    assert [len(part) for part in sets] == [160, 80, 160]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


def test_a_pasted_face_fills_its_box_and_leaves_the_rest() -> None:
    canvas, picture = torch.zeros(1, 1, 80, 80), torch.ones(1, 1, 112, 92)
    centre, height = torch.tensor([[40.0, 44.0]]), torch.tensor([48.0])
    out = _paste(canvas, picture, centre, height, torch.zeros(1), torch.zeros(1, 1, 1, dtype=torch.bool))
    covered = out[0, 0] > 0.5
    rows, columns = covered.any(1).nonzero().flatten(), covered.any(0).nonzero().flatten()
    width = 48 * OVAL[0] * 92 / (OVAL[1] * 112)
    # The soft edge is half way at 1.02 - 1 / 16 of the oval.
    assert int(rows[-1] - rows[0] + 1) == pytest.approx(48 * 0.96, abs=2)
    assert int(columns[-1] - columns[0] + 1) == pytest.approx(width * 0.96, abs=2)
    assert float(rows.float().mean()) + 0.5 == pytest.approx(44, abs=0.6)
    assert float(columns.float().mean()) + 0.5 == pytest.approx(40, abs=0.6)


def test_decoys_have_the_pixels_of_a_face_in_another_order() -> None:
    picture = torch.rand(1, 1, 112, 92, generator=torch.Generator().manual_seed(0))
    shuffled = _shuffle(picture, torch.rand(1, 16, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(picture.flatten().sort().values, shuffled.flatten().sort().values)
    assert not torch.equal(picture, shuffled)
    in_order = _shuffle(picture, torch.arange(16.0)[None])
    assert torch.equal(in_order, picture)


def test_the_faces_cut_out_are_the_people_that_the_scenes_name(scenes: SceneSet) -> None:
    faces = scene_faces(scenes, image_size=(56, 46), margin=0.0)
    assert len(faces) == int(scenes.counts.sum())
    assert faces.official_split is not None
    assert torch.bincount(faces.official_split.long(), minlength=3).tolist() == [
        int(scenes.counts[scenes.part(p)].sum()) for p in range(3)
    ]

    # The nearest AT&T photograph in the middle of the face, light and contrast aside, is mostly of the person named.
    def middle(images: torch.Tensor) -> torch.Tensor:
        flat = images.float()[:, :, 12:44, 10:36].flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        return flat / flat.norm(dim=1, keepdim=True)

    photographs = orl(image_size=(56, 46))
    nearest = (middle(faces.images) @ middle(photographs.images).T).argmax(1)
    assert float((photographs.classes[nearest] == faces.classes).float().mean()) > 0.7


def test_unusable_scenes_are_refused() -> None:
    cases = (
        ({"scenes": (0, 0, 5)}, r"scenes.scenes must be null or \(train, val, test\) with train an integer >= 1"),
        ({"photographs": (8, 0, 5)}, "scenes.photographs must share out the 10"),
        ({"scenes": (5, 5, 5)}, "leave some for every part that has scenes"),
        ({"people": 41}, r"scenes.people must be in \[2, 40\], got 41"),
        ({"max_faces": 0}, "scenes.max_faces must be >= 1, got 0"),
        ({"face_height": (20, 400)}, r"scenes.face_height must be .* got \[20, 400\]"),
        ({"rotation": 120}, r"scenes.rotation must be in \[0, 90\] degrees, got 120"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            orl_scenes(**options)  # type: ignore[arg-type]


def marked(boxes: torch.Tensor, size: tuple[int, int] = (40, 60)) -> torch.Tensor:
    """[B, 1, H, W], one inside each box and zero elsewhere."""
    images = torch.zeros(len(boxes), 1, *size)
    for image, own in zip(images, boxes, strict=True):
        for left, top, right, bottom in own.int().tolist():
            image[0, top:bottom, left:right] = 1
    return images


def test_boxes_move_with_what_is_in_them() -> None:
    boxes = torch.tensor([[[20.0, 10, 40, 26]]]).expand(16, 1, 4)
    draw = torch.rand(16, SCENE_DRAWS, generator=torch.Generator().manual_seed(3))
    images, moved, valid = SceneAugmentation(brightness=0)(marked(boxes), boxes, torch.ones(16, 1, dtype=torch.bool), draw)
    assert bool(valid.all())
    assert not torch.equal(moved, boxes)
    for image, (left, top, right, bottom) in zip(images[:, 0] > 0.5, moved[:, 0].tolist(), strict=True):
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        seen = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        assert seen == pytest.approx([left, top, right, bottom], abs=1.0)


def test_a_mirrored_box_is_the_one_worked_out_by_hand() -> None:
    boxes = torch.tensor([[[5.0, 10, 15, 30]]])
    draw = torch.tensor([[0.2, 0.5, 0.5, 0.5, 0.5, 0.5]])
    still = SceneAugmentation(scale=0, shift=0, brightness=0)
    images, moved, _ = still(marked(boxes), boxes, torch.ones(1, 1, dtype=torch.bool), draw)
    assert moved.tolist() == [[[45.0, 10, 55, 30]]]
    assert torch.allclose(images, marked(boxes).flip(-1), atol=1e-5)


def test_a_face_whose_centre_leaves_the_picture_no_longer_counts_and_others_end_at_the_border() -> None:
    boxes = torch.tensor([[[0.0, 10, 8, 20], [2.0, 20, 18, 30]]])
    # All the way to the left: a tenth of 60 pixels.
    draw = torch.tensor([[0.9, 0.5, 0.0, 0.5, 0.5, 0.5]])
    moving = SceneAugmentation(flip=False, scale=0, shift=0.1, brightness=0)
    _, moved, valid = moving(torch.rand(1, 1, 40, 60), boxes, torch.ones(1, 2, dtype=torch.bool), draw)
    assert valid.tolist() == [[False, True]]
    assert moved[0, 1].tolist() == pytest.approx([0.0, 20, 12, 30], abs=1e-5)


def test_without_changes_scenes_stay_as_they_are() -> None:
    boxes = torch.tensor([[[5.0, 10, 15, 30]]])
    none = SceneAugmentation(flip=False, scale=0, shift=0, brightness=0)
    images, moved, valid = none(marked(boxes), boxes, torch.ones(1, 1, dtype=torch.bool), torch.rand(1, SCENE_DRAWS))
    assert torch.equal(images, marked(boxes))
    assert torch.equal(moved, boxes)
    assert valid.tolist() == [[True]]
    assert dataclasses.is_dataclass(none)
