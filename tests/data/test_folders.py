"""Class folders written by hand."""

import os
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


@pytest.mark.parametrize("names", [("Train", "VALID", "Testing"), ("training", "validation", "TEST")])
def test_parts_are_known_by_their_usual_names(tmp_path, names):
    for level, part in enumerate(names):
        paint(tmp_path / part / "a" / "1.png", level)
        paint(tmp_path / part / "b" / "1.png", level)
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    data = folder(str(tmp_path))
    assert data.class_names == ("a", "b")
    assert sorted(zip(levels(data), data.official_split.tolist(), strict=True)) == [(i, i) for i in range(3) for _ in "ab"]
    paint(tmp_path / "val" / "a" / "1.png")
    with pytest.raises(ValueError, match=r"data\.root must hold one folder for val, got both .*(VALID|val) and .*"):
        folder(str(tmp_path))


def test_copies_in_two_parts_or_under_two_classes_are_named(tmp_path, caplog):
    for level, name in enumerate(
        ("train/a/1.png", "train/a/2.png", "train/b/3.png", "test/a/4.png", "test/b/5.png", "test/b/6.png")
    ):
        paint(tmp_path / name, level)
    folder(str(tmp_path))
    assert "are copies" not in caplog.text
    paint(tmp_path / "test" / "a" / "4.png", 1)  # as train/a/2.png
    paint(tmp_path / "train" / "a" / "7.png", 1)  # within one part: no matter
    paint(tmp_path / "test" / "b" / "5.png", 0)  # as train/a/1.png
    paint(tmp_path / "test" / "b" / "6.png", 0)
    # The same pixels in another file are no copy.
    paint(tmp_path / "test" / "b" / "8.bmp", 2)
    folder(str(tmp_path))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "2 files are copies of others under two classes, so that an image may be trained and tested on: the first are "
        f"{tmp_path / 'train/a/1.png'} and {tmp_path / 'test/b/5.png'}",
        "1 files are copies of others in two parts, so that an image may be trained and tested on: the first are "
        f"{tmp_path / 'train/a/2.png'} and {tmp_path / 'test/a/4.png'}",
    ]


def test_copies_within_a_class_are_named_where_the_parts_are_yet_to_be_drawn(tmp_path, caplog):
    for name, level in (("a/1.png", 1), ("b/2.png", 2), ("b/3.png", 2)):
        paint(tmp_path / name, level)
    folder(str(tmp_path))
    assert (
        f"1 files are copies of others in one class, so that an image may be trained and tested on: the first are {tmp_path}/b/2"
        in (caplog.text)
    )


def test_what_is_passed_over_is_counted_and_named(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"):
        paint(tmp_path / name, len(name))
    for name in ("train/a/notes.txt", "test/a/more.TXT", "train/b/._1.png", "__MACOSX/x.png", "test/b/deeper/1.png", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    assert len(folder(str(tmp_path))) == 4
    assert (
        f"ignored in {tmp_path}, with the first of each kind: 2 .txt (train/a/notes.txt), 2 folders (__MACOSX), "
        "1 hidden (train/b/._1.png), 1 no extension (README)"
    ) in caplog.text
    assert not caplog.text.count(".cache")


def test_a_folder_name_that_is_not_utf8_is_named(tmp_path):
    paint(tmp_path / "a" / "1.png")
    (tmp_path / "a").rename(os.fsdecode(os.fsencode(tmp_path) + b"/Zo\xeb"))
    with pytest.raises(ValueError, match=r"class folders with names in UTF-8, got 'Zo\\+xeb' in"):
        folder(str(tmp_path))


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
