import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl.base.types import ImageData
from mtl.data import splits
from tests.composing import compose
from tests.conftest import make_images


def parts(split: splits.Split) -> list[int]:
    return torch.cat([split.train, split.val, split.test]).tolist()


def test_per_class_takes_the_stated_numbers_of_every_class(images: ImageData) -> None:
    split = splits.per_class(images, 0, train=3, val=1, test=2)
    for part, number in ((split.train, 3), (split.val, 1), (split.test, 2)):
        assert images.classes[part].bincount().tolist() == [number] * 4
    assert sorted(parts(split)) == list(range(24))


def test_a_class_too_small_is_named(images: ImageData) -> None:
    images.classes[5] = 1
    with pytest.raises(ValueError, match=r"6 images of each class, and class c0 of made has 5"):
        splits.per_class(images, 0, train=3, val=1, test=2)


@given(st.integers(1, 5), st.integers(2, 9), st.floats(0, 0.4), st.floats(0.05, 0.5), st.integers(0, 99))
@example(1, 3, 0.0, 0.49999999257863775, 0)  # 1.49999998, which is 1.5 and so 2 in single precision
@settings(max_examples=40, deadline=None)
def test_fractions_cover_all_and_keep_an_image_of_every_class(num: int, size: int, val: float, test: float, seed: int) -> None:
    images = make_images(num, size)
    quota = round(size * test)
    if not quota:
        return
    split = splits.fractions(images, seed, val=val, test=test)
    assert sorted(parts(split)) == list(range(num * size))
    assert set(images.classes[split.train].tolist()) == set(range(num))
    assert images.classes[split.test].bincount().tolist() == [min(quota, size - 1)] * num


def test_official_keeps_the_test_images_and_takes_validation_from_training(images: ImageData) -> None:
    official = torch.tensor([0, 0, 0, 0, 2, 2] * 4, dtype=torch.int8)
    split = splits.official(dataclasses.replace(images, official_split=official), 0, val=0.25)
    assert torch.equal(split.test, torch.nonzero(official == 2).flatten())
    assert images.classes[split.val].bincount().tolist() == [1] * 4
    assert sorted(parts(split)) == list(range(24))


def test_the_default_split_is_the_official_one_where_there_is_one(images: ImageData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with_parts = dataclasses.replace(images, official_split=torch.tensor([0, 0, 0, 1, 2, 2] * 4, dtype=torch.int8))
    split = splits.auto(with_parts, 0)
    assert split.test.tolist() == [i for i in range(24) if i % 6 > 3]
    assert split.val.tolist() == [i for i in range(24) if i % 6 == 3]
    assert "split=official of made: 12 images to train, 4 for validation, 8 to test" in caplog.text
    with pytest.raises(
        ValueError, match=r"split.train split.val must be null, as made has an official split, got 3, 0; use split=per_class"
    ):
        splits.auto(with_parts, 0, train=3, val=0)
    assert len(splits.per_class(with_parts, 0, train=5).train) == 20
    for other in (images, dataclasses.replace(images, official_split=torch.zeros(24, dtype=torch.int8))):
        assert all(map(torch.equal, dataclasses.astuple(splits.auto(other, 0)), dataclasses.astuple(splits.per_class(other, 0))))
        three = splits.auto(other, 0, train=3, val=1, test=2)
        assert [len(three.train), len(three.val), len(three.test)] == [12, 4, 8]
    assert compose().split._target_ == "mtl.data.splits.auto"


def test_parts_without_a_test_are_refused_and_not_mixed(images: ImageData) -> None:
    with_parts = dataclasses.replace(images, official_split=torch.tensor([0, 0, 0, 0, 1, 1] * 4, dtype=torch.int8))
    with pytest.raises(
        ValueError, match="split=official needs test images, and the official split of made has none; use split=fractions"
    ):
        splits.auto(with_parts, 0)


def test_official_needs_a_partition(images: ImageData) -> None:
    with pytest.raises(ValueError, match="use split=fractions"):
        splits.official(images, 0)


def test_a_seed_is_a_split(images: ImageData) -> None:
    first, again, other = (splits.per_class(images, seed, train=3) for seed in (0, 0, 1))
    assert torch.equal(first.train, again.train)
    assert not torch.equal(first.train, other.train)
