"""Train, validation and test images by a stated rule.

The best round is selected on validation images and never on test images. Where a protocol leaves no validation images, nothing is
selected: the last round counts.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base.seeding import generator
from mtl.base.types import ImageData

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Indices of images, int64, sorted; no image is in two of them."""

    train: Tensor
    val: Tensor
    test: Tensor


def auto(data: ImageData, seed: int, *, train: int | None = None, val: int | None = None, test: int | None = None) -> Split:
    """`official` where the data come in parts, else `per_class`.

    Args:
        data: the images with their classes and attributes.
        seed: of the random draws.
        train: images of every class for training, null as `per_class` has it.
        val: images of every class for validation.
        test: images of every class for test, null for all that are left.
    """
    if data.official_split is None or len(data.official_split.unique()) < 2:
        return per_class(data, seed, train=5 if train is None else train, val=0 if val is None else val, test=test)
    numbers = {name: number for name, number in (("train", train), ("val", val), ("test", test)) if number is not None}
    if numbers:
        raise ValueError(
            f"split.{' split.'.join(numbers)} must be null, as {data.name} has an official split, got "
            f"{', '.join(map(str, numbers.values()))}; use split=per_class to draw a new split of all images, or split=official"
        )
    return official(data, seed)


def per_class(data: ImageData, seed: int, *, train: int = 5, val: int = 0, test: int | None = None) -> Split:
    """The same number of random images of every class for training, validation and test.

    Args:
        data: the images with their classes and attributes.
        seed: of the random draws.
        train: training images of every class.
        val: validation images of every class.
        test: test images of every class, None for all that are left.
    """
    needed = train + val + (1 if test is None else test)
    if train < 1 or val < 0 or (test is not None and test < 1):
        raise ValueError(
            f"split needs train >= 1, val >= 0 and test >= 1 images a class, got train={train} val={val} test={test}"
        )
    parts: list[list[Tensor]] = [[], [], []]
    rng = generator(seed, "split")
    for c, name in enumerate(data.class_names):
        members = torch.nonzero(data.classes == c).flatten()
        if len(members) < needed:
            raise ValueError(
                f"split.train + split.val + split.test asks for {needed} images of each class, and class {name} of {data.name} "
                f"has {len(members)}"
            )
        members = members[torch.randperm(len(members), generator=rng)]
        end = None if test is None else needed
        for part, piece in zip(parts, (members[:train], members[train : train + val], members[train + val : end]), strict=True):
            part.append(piece)
    if not parts[0]:
        raise ValueError(f"split=per_class needs a data set with classes, and {data.name} has none")
    return _checked("per_class", data, Split(*(torch.cat(part).sort().values for part in parts)))


def fractions(data: ImageData, seed: int, *, val: float = 0.1, test: float = 0.2) -> Split:
    """Random fractions of every class for validation and test.

    Of all images where classes are not known; every class keeps an image for training.

    Args:
        data: the images with their classes and attributes.
        seed: of the random draws.
        val: fraction for validation.
        test: fraction for test.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"split.val and split.test must be fractions that leave some for training, got val={val} test={test}")
    everything = torch.arange(len(data))
    rest, test_part = _stratified(data.classes, everything, test, generator(seed, "split"))
    train, val_part = _stratified(data.classes, rest, val / (1 - test), generator(seed, "split-val"))
    return _checked("fractions", data, Split(train, val_part, test_part))


def official(data: ImageData, seed: int, *, val: float = 0.1) -> Split:
    """The parts that the data come in.

    Args:
        data: the images with their classes and attributes.
        seed: of the random draws.
        val: where they have no validation images, this fraction of each training class becomes them.
    """
    if data.official_split is None:
        raise ValueError(f"split=official needs a data set with an official split, and {data.name} has none; use split=fractions")
    if not 0 <= val < 1:
        raise ValueError(f"split.val must be in [0, 1), got {val}")
    train, val_part, test = (torch.nonzero(data.official_split == part).flatten() for part in range(3))
    if not len(test):
        raise ValueError(
            f"split=official needs test images, and the official split of {data.name} has none; use split=fractions to draw them"
        )
    if not len(val_part):
        train, val_part = _stratified(data.classes, train, val, generator(seed, "split-val"))
    return _checked("official", data, Split(train, val_part, test))


def _stratified(classes: Tensor, index: Tensor, fraction: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split `index` in two: of a class with n images round(fraction n) are taken, at most n - 1; the rest comes first."""
    order = index[torch.randperm(len(index), generator=rng)]
    order = order[classes[order].sort(stable=True).indices]
    _, sizes = classes[order].unique_consecutive(return_counts=True)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order)) - starts.repeat_interleave(sizes)
    quota = torch.minimum((sizes.double() * fraction).round().long(), sizes - 1)
    taken = rank < quota.repeat_interleave(sizes)
    return order[~taken].sort().values, order[taken].sort().values


def _checked(rule: str, data: ImageData, split: Split) -> Split:
    if not len(split.train) or not len(split.test):
        raise ValueError(
            f"split must leave images for training and for test, got {len(split.train)} and {len(split.test)} of {len(data)} in {data.name}"
        )
    sizes = len(split.train), len(split.val), len(split.test)
    logger.info("split=%s of %s: %d images to train, %d for validation, %d to test", rule, data.name, *sizes)
    return split
