"""Class folders written by hand."""

from pathlib import Path

import pytest
from PIL import Image

from mtl.data.folders import folder


def paint(path: Path, level: int = 0, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def levels(data) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def test_classes_are_folders_by_alphabet(tmp_path):
    for level, name in enumerate(("zoe/1.png", "amy/2.png", "amy/1.PNG", "Bob/x.bmp", "amy/3.ppm")):
        paint(tmp_path / name, level)
    data = folder(str(tmp_path), image_size=None)
    assert data.class_names == ("Bob", "amy", "zoe")
    assert data.classes.tolist() == [0, 1, 1, 1, 2]
    assert levels(data) == [3, 2, 1, 4, 0]
    assert data.official_split is None
    assert data.attributes.shape == (5, 0)
    assert data.source == str(tmp_path)


def test_split_folders_give_the_official_split(tmp_path):
    for level, name in enumerate(("train/a/1.png", "train/b/1.png", "val/b/1.png", "test/a/1.png", "test/c/1.png")):
        paint(tmp_path / name, level)
    data = folder(str(tmp_path))
    assert data.class_names == ("a", "b", "c")
    assert levels(data) == [0, 1, 2, 3, 4]
    assert data.classes.tolist() == [0, 1, 1, 0, 2]
    assert data.official_split.tolist() == [0, 0, 1, 2, 2]


def test_a_class_may_be_called_test(tmp_path):
    paint(tmp_path / "test" / "1.png")
    paint(tmp_path / "train" / "1.png")
    data = folder(str(tmp_path))
    assert data.class_names == ("test", "train")
    assert data.official_split is None


def test_hidden_files_and_other_extensions_are_passed_over(tmp_path):
    paint(tmp_path / "a" / "1.png")
    paint(tmp_path / "a" / "._1.png")
    paint(tmp_path / ".hidden" / "1.png")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "readme.md").write_text("no picture")
    assert len(folder(str(tmp_path))) == 1
    assert folder(str(tmp_path)).class_names == ("a",)


def test_mixed_sizes_are_resized_by_default(tmp_path):
    paint(tmp_path / "a" / "1.png", size=(100, 30))
    paint(tmp_path / "b" / "1.png", size=(9, 200))
    assert folder(str(tmp_path)).images.shape == (2, 3, 64, 64)
    assert folder(str(tmp_path), image_size=(8, 6), grey=True).images.shape == (2, 1, 8, 6)


def test_skipped_images_take_their_labels_with_them(tmp_path):
    for level, name in enumerate(("train/a/1.png", "train/b/1.png", "test/a/1.png")):
        paint(tmp_path / name, level)
    (tmp_path / "train" / "a" / "0.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"train/a/0\.png"):
        folder(str(tmp_path))
    data = folder(str(tmp_path), skip_corrupt=True)
    assert levels(data) == [0, 1, 2]
    assert data.classes.tolist() == [0, 1, 0]
    assert data.official_split.tolist() == [0, 0, 2]


def test_an_empty_class_folder_is_named(tmp_path):
    paint(tmp_path / "a" / "1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"data\.root must hold class folders with images.*{tmp_path / 'empty'}"):
        folder(str(tmp_path))


@pytest.mark.parametrize(
    "came", ["no such folder", "a folder without sub-folders or images", "a file", "a folder with loose.png"]
)
def test_a_root_without_class_folders_says_what_came(tmp_path, came):
    root = tmp_path / "mine"
    if "folder w" in came:
        root.mkdir()
    if "loose" in came:
        paint(root / "loose.png")
    if came == "a file":
        root.write_text("")
    with pytest.raises(FileNotFoundError) as caught:
        folder(str(root))
    assert isinstance(caught.value, ValueError)
    for part in ("data.root must hold", "<class>/*.jpg", f"looked in {root}", f"got {str(root)!r}, {came}."):
        assert part in str(caught.value)
