"""WIDER FACE in its own layout."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mtl.data.images import CorruptImage, DataNotFound
from mtl.data.widerface import usable_boxes, widerface


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A training picture of 80 x 40 with a usable box and three others, one of 20 x 40 without a face, and a test picture."""
    base = tmp_path / "widerface"
    for part in ("train", "val", "test"):
        (base / f"WIDER_{part}" / "images" / "0--Parade").mkdir(parents=True)
    wide = Image.new("RGB", (80, 40), (0, 0, 0))
    wide.paste((255, 255, 255), (20, 10, 40, 30))
    wide.save(base / "WIDER_train" / "images" / "0--Parade" / "a.png")
    Image.new("RGB", (20, 40), (9, 9, 9)).save(base / "WIDER_train" / "images" / "0--Parade" / "b.png")
    Image.new("RGB", (30, 30), (7, 7, 7)).save(base / "WIDER_val" / "images" / "0--Parade" / "c.png")
    (base / "wider_face_split").mkdir()
    boxes = ["20 10 20 20 0 0 0 0 2 1", "70 30 30 30 0 0 0 0 0 0", "1 1 9 9 0 0 0 1 0 0", "90 5 10 10 0 0 0 0 0 0"]
    train = ["0--Parade/a.png", "4", *boxes, "0--Parade/b.png", "0", "0 0 0 0 0 0 0 0 0 0"]
    (base / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_text("\n".join(train) + "\n")
    (base / "wider_face_split" / "wider_face_val_bbx_gt.txt").write_text("0--Parade/c.png\n1\n3 6 12 15 0 0 0 0 0 0\n")
    return tmp_path


def test_boxes_follow_their_pictures_and_unusable_ones_are_dropped_and_counted(root: Path) -> None:
    scenes = widerface(str(root), image_size=(40, 40))
    assert scenes.images.shape == (3, 3, 40, 40)
    assert scenes.split.tolist() == [0, 0, 2]
    assert scenes.counts.tolist() == [2, 0, 1]
    # Half as large; the second box ends at the border of the picture, 80 x 40, not of the scene.
    assert scenes.boxes[0].tolist() == [[10, 5, 20, 15], [35, 15, 40, 20]]
    assert scenes.boxes[2, 0].tolist() == pytest.approx([4, 8, 20, 28])
    assert bool((scenes.images[0, :, 5:15, 10:20] == 255).all())
    assert bool((scenes.images[0, :, 20:] == 128).all())
    assert bool((scenes.identity == -1).all())
    assert "3 of 6 boxes dropped" in scenes.source


def test_a_fraction_of_the_training_part_is_for_validation(root: Path) -> None:
    assert sorted(widerface(str(root), image_size=(16, 16), grey=True, val=0.5).split.tolist()) == [0, 1, 2]
    assert len(widerface(str(root), image_size=(16, 16), max_images=1)) == 2


def test_a_box_of_less_than_a_pixel_is_dropped() -> None:
    bbox = torch.tensor([[0, 0, 10, 10], [0, 0, 3, 10], [5, 5, 0, 4], [4, 4, 8, 8]])
    boxes = usable_boxes(bbox, torch.tensor([False, False, False, True]), torch.tensor([0.25, 0.25]), (20, 20))
    assert boxes.tolist() == [[0, 0, 2.5, 2.5]]


def test_a_missing_data_set_and_a_missing_picture_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"WIDER FACE as widerface/.*Get it from"):
        widerface(str(tmp_path / "none"))
    (root / "widerface" / "WIDER_val" / "images" / "0--Parade" / "c.png").unlink()
    with pytest.raises(CorruptImage, match=r"c.png: it is missing, damaged or not an image"):
        widerface(str(root))
