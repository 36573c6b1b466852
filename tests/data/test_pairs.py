from pathlib import Path

import pytest
import torch
from PIL import Image

from mtl.data.images import DataNotFound
from mtl.data.pairs import lfw_pairs, read_pairs, unseen_pairs
from tests.conftest import make_images
from tests.data.test_faces import real

LINES = [
    "2\t2",
    *("Al\t1\t2", "Bo\t1\t3", "Al\t1\tBo\t2", "Bo\t1\tAl\t2"),
    *("Cy\t1\t2", "Di\t2\t1", "Cy\t1\tDi\t1", "Di\t2\tCy\t2"),
]
PICTURES = {"Al": 2, "Bo": 3, "Cy": 2, "Di": 2}


def lay_out(folder: Path, lines: list[str] = LINES, pictures: dict[str, int] = PICTURES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    for level, (person, count) in enumerate(pictures.items()):
        (folder / person).mkdir(exist_ok=True)
        for number in range(1, count + 1):
            Image.new("L", (4, 4), 40 * level + 10 * number).save(folder / person / f"{person}_{number:04d}.jpg")


@pytest.mark.parametrize("place", ["lfw", "lfw_funneled", ".", "lfw-py/lfw_funneled"])
def test_pairs_are_those_of_the_file_in_its_order(tmp_path: Path, place: str) -> None:
    lay_out(tmp_path / place)
    if place.startswith("lfw-py"):  # torchvision has the file above the people
        (tmp_path / place / "pairs.txt").rename(tmp_path / "lfw-py" / "pairs.txt")
    pairs = lfw_pairs(str(tmp_path), image_size=None, grey=True)
    levels = pairs.images[:, 0, 0, 0].tolist()
    seen = [(levels[a], levels[b]) for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)]
    expected = [(10, 20), (50, 70), (10, 60), (50, 20), (90, 100), (140, 130), (90, 130), (140, 100)]
    assert [value for pair in seen for value in pair] == pytest.approx([value for pair in expected for value in pair], abs=2)
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.fold.tolist() == [0] * 4 + [1] * 4


def test_all_missing_pictures_are_listed_in_one_error(tmp_path: Path) -> None:
    lay_out(tmp_path / "lfw")
    for name in ("Bo/Bo_0002.jpg", "Di/Di_0001.jpg"):
        (tmp_path / "lfw" / name).unlink()
    with pytest.raises(ValueError, match=r"names 9 pictures, and 2 of them are missing in .*: Bo/Bo_0002.jpg, Di/Di_0001.jpg$"):
        lfw_pairs(str(tmp_path))


def test_pairs_are_read_as_editors_save_them_and_named_where_none_is_there(tmp_path: Path) -> None:
    lay_out(tmp_path / "lfw")
    file = tmp_path / "lfw" / "pairs.txt"
    plain = read_pairs(file)
    file.write_bytes(("\ufeff" + "\r\n".join(LINES)).encode())
    assert read_pairs(file) == plain
    file.write_text("\n".join(LINES).lower())
    with pytest.raises(
        ValueError, match=r"names 9 pictures, and none of them is in .*: the first is al/al_0001\.jpg, letter case counts"
    ):
        lfw_pairs(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "ten 300", "must begin with the number of folds"),
        (0, "2\t3", "must have 12 pairs, 2 folds of 3 of each kind, got 8"),
        (2, "Bo\t1", "must have in line 3 person, number, number, got 'Bo 1'"),
        (3, "Al\t1\t2", "must have in line 4 person, number, other person, number, got 'Al 1 2'"),
        (3, "Al\t1\tAl\t2", "must name two people in line 4"),
        (5, "Cy\tone\t2", "must have in line 6 person, number, number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: int, text: str, message: str) -> None:
    lines = [*LINES[:line], text, *LINES[line + 1 :]]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "pairs.txt")


def test_no_pairs_file_says_where_we_looked(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"data.root must hold LFW's pairs.txt .*lfw-py.*Get both from https"):
        lfw_pairs(str(tmp_path))


def test_folds_of_unseen_people_share_nobody() -> None:
    data = make_images(num_classes=12, per_class=5)
    pairs = unseen_pairs(data, num_folds=3, pairs_per_fold=20)
    people = {tuple(picture.flatten().tolist()): c for picture, c in zip(data.images, data.classes.tolist(), strict=True)}
    first, second = (
        [people[tuple(pairs.images[i].flatten().tolist())] for i in part.tolist()] for part in (pairs.first, pairs.second)
    )
    assert [a == b for a, b in zip(first, second, strict=True)] == pairs.same.tolist()
    in_fold = [{c for c, f in zip(first + second, pairs.fold.tolist() * 2, strict=True) if f == fold} for fold in range(3)]
    assert not (in_fold[0] & in_fold[1])
    assert not (in_fold[0] & in_fold[2])
    assert not (in_fold[1] & in_fold[2])
    for fold in range(3):
        assert pairs.same[pairs.fold == fold].sum() == (~pairs.same[pairs.fold == fold]).sum() == 20
    drawn = {frozenset((a, b)) for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
    assert len(drawn) == len(pairs)
    assert all(len(pair) == 2 for pair in drawn)
    again = unseen_pairs(data, num_folds=3, pairs_per_fold=20)
    assert torch.equal(pairs.first, again.first)
    other = unseen_pairs(data, num_folds=3, pairs_per_fold=20, seed=1)
    assert not torch.equal(pairs.images[pairs.first], other.images[other.first])


def test_folds_take_all_pairs_where_they_are_few_and_refuse_none() -> None:
    pairs = unseen_pairs(make_images(num_classes=4, per_class=2), num_folds=2)
    assert len(pairs) == 2 * (2 + 2)  # two people a fold with two pictures each: a pair of one each, and as many of two
    with pytest.raises(ValueError, match="3 folds need at least 6 people, and made has 4"):
        unseen_pairs(make_images(), num_folds=3)
    with pytest.raises(ValueError, match="each fold needs two pictures of one person"):
        unseen_pairs(make_images(per_class=1), num_folds=2)


def test_lfw_view_2_is_as_published() -> None:
    pairs = lfw_pairs(real("lfw"), image_size=(8, 8), grey=True)
    assert pairs.fold.bincount().tolist() == [600] * 10
    assert [int(pairs.same[pairs.fold == fold].sum()) for fold in range(10)] == [300] * 10
    named = read_pairs(Path(pairs.source))
    people = [{picture[0] for first, second, f in named for picture in (first, second) if f == fold} for fold in range(10)]
    assert all(not people[a] & people[b] for a in range(10) for b in range(a))
