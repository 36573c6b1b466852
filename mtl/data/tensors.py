"""A data set from tensors, arrays or a Dataset that a program has already."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtl.base.types import ImageData
from mtl.data.images import no_attributes

PARTS = ("train", "val", "test")
LABELS = "int64 [N] classes, or bool or int8 [N, T] with 1 yes, 0 no and -1 unknown"


def from_tensors(
    images: Any,
    labels: Any = None,
    *,
    tasks: Sequence[str] | None = None,
    split: Mapping[str, Any] | None = None,
    name: str = "given",
) -> ImageData:
    """Put images and labels into the form that a run reads; the tensors are checked, and shared where their type is right.

    Args:
        images: uint8 or float [N, c, H, W]; or a Dataset of (image [c, H, W], label) pairs, without `labels`.
        labels: int64 [N], classes, -1 where unknown; or bool or int8 [N, T], attributes, with -1 where unknown.
        tasks: names of the classes, of which the labels are the places, or of the T attributes; by default numbers.
        split: indices of the images of `train`, `test` and, if any, `val`; images in none of them are left out.
        name: of the data set, in errors and logs.

    Raises:
        ValueError: a shape, a type or a value is not as above, or there are fewer than two images.
    """
    if isinstance(images, Dataset):
        if labels is not None:
            raise ValueError("labels must be left out where images is a Dataset of (image, label) pairs")
        images, labels = _stacked(images)
    pictures = _images(images)
    if labels is None:
        raise ValueError(f"labels must be {LABELS}, got none")
    values = _tensor("labels", labels)
    if values.ndim not in (1, 2) or len(values) != len(pictures):
        raise ValueError(f"labels must be {LABELS}, N = {len(pictures)}, got shape {list(values.shape)}")
    classes, attributes = torch.full((len(pictures),), -1), no_attributes(len(pictures))
    class_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    if values.ndim == 1:
        classes, class_names = _classes(values, tasks)
    else:
        attributes, attribute_names = _attributes(values, tasks)
    return ImageData(
        name=name,
        images=pictures,
        classes=classes,
        class_names=class_names,
        attributes=attributes,
        attribute_names=attribute_names,
        source="tensors",
        official_split=None if split is None else _parts(split, len(pictures)),
    )


def check_images(images: Any) -> Tensor:
    """Images [N, c, H, W], uint8 or float32, as a run stores them. Raises ValueError where they are not images, or not finite."""
    values = _tensor("images", images)
    if values.ndim != 4 or 0 in values.shape[1:]:
        raise ValueError(f"images must have the shape [N, c, H, W], got {list(values.shape)}")
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise ValueError(f"images must be uint8 in 0..255 or floating point, got {_dtype(values)}")
    values = values.float()
    wrong = (~values.flatten(1).isfinite().all(1)).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"images must be finite, got NaN or infinity in {len(wrong)} of {len(values)}, first in image {int(wrong[0])}"
        )
    return values


def _images(images: Any) -> Tensor:
    values = check_images(images)
    if len(values) < 2:
        raise ValueError(f"images must be at least 2, some to train and some to test, got {len(values)}")
    return values


def _tensor(field: str, value: Any) -> Tensor:
    try:
        values = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field} must be a tensor or an array of numbers, got {type(value).__name__}: {error}") from error
    return values.detach().cpu()


def _stacked(data: "Dataset[Any]") -> tuple[Tensor, Tensor]:
    """All pairs of a Dataset."""
    if not hasattr(data, "__len__"):
        raise ValueError(f"images must be a Dataset with a length, got {type(data).__name__}")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for place in range(len(data)):
        pair = data[place]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"images must be a Dataset of (image, label) pairs, got {type(pair).__name__} at {place}")
        image, label = _picture(pair[0]), _tensor("labels", pair[1])
        for field, value, others in (("image", image, images), ("label", label, labels)):
            if others and (value.shape, value.dtype) != (others[0].shape, others[0].dtype):
                raise ValueError(
                    f"images must be a Dataset whose {field}s are alike, got {list(value.shape)} of {_dtype(value)} at {place} and "
                    f"{list(others[0].shape)} of {_dtype(others[0])} at 0"
                )
            others.append(value)
    if not images:
        raise ValueError("images must be at least 2, some to train and some to test, got an empty Dataset")
    return torch.stack(images), torch.stack(labels)


def _picture(image: Any) -> Tensor:
    """A tensor as it is; a picture of Pillow's with its channels first."""
    if isinstance(image, Tensor):
        return image
    pixels = np.array(image)
    if hasattr(image, "getbands"):
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return _tensor("images", pixels)


def _classes(labels: Tensor, tasks: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be {LABELS}, got {_dtype(labels)} [N]")
    labels = labels.long()
    if int(labels.min()) < -1:
        raise ValueError(f"labels must be >= 0, or -1 where the class is not known, got {int(labels.min())}")
    present = labels[labels >= 0].unique()
    if len(present) < 2:
        raise ValueError(f"labels must hold at least 2 classes, got {len(present)}")
    if tasks is None:
        return torch.where(labels >= 0, torch.searchsorted(present, labels), -1), tuple(map(str, present.tolist()))
    if int(present[-1]) >= len(tasks):
        raise ValueError(f"labels must be below {len(tasks)}, the number of tasks, got {int(present[-1])}")
    return labels, _names(tasks)


def _attributes(labels: Tensor, tasks: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be {LABELS}, got {_dtype(labels)} [N, T]")
    wrong = labels[(labels.long() < -1) | (labels.long() > 1)]
    if len(wrong):
        raise ValueError(f"labels must be {LABELS}, got {int(wrong[0])}")
    names = tuple(map(str, range(labels.shape[1]))) if tasks is None else _names(tasks)
    if not names or len(names) != labels.shape[1]:
        raise ValueError(f"tasks must be the names of the {labels.shape[1]} columns of labels, at least one, got {len(names)}")
    return labels.to(torch.int8), names


def _names(tasks: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tasks, str) or not all(isinstance(name, str) for name in tasks):
        raise ValueError(f"tasks must be a list of names, got {tasks!r}")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks must have different names, got {list(tasks)}")
    return tuple(tasks)


def _parts(split: Mapping[str, Any], count: int) -> Tensor:
    """int8 [N]: 0 train, 1 validation, 2 test, -1 in none."""
    if not {"train", "test"} <= set(split) <= set(PARTS):
        raise ValueError(
            f"split must hold the indices of train, test and, if any, val, got {', '.join(map(str, split)) or 'none'}"
        )
    part_of = torch.full((count,), -1, dtype=torch.int8)
    for number, part in enumerate(PARTS):
        index = _tensor(f"split.{part}", split.get(part, []))
        if not len(index):
            if part in ("train", "test"):
                raise ValueError(f"split.{part} must hold at least one image, got none")
            continue
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point():
            raise ValueError(f"split.{part} must be a list of indices, got {_dtype(index)} {list(index.shape)}")
        index = index.long()
        if int(index.min()) < 0 or int(index.max()) >= count:
            raise ValueError(f"split.{part} must be in [0, {count - 1}], got {int(index.min())} to {int(index.max())}")
        if (part_of[index] >= 0).any() or len(index.unique()) < len(index):
            twice = index[part_of[index] >= 0]
            image = int(twice[0]) if len(twice) else int(index.sort().values[:-1][index.sort().values.diff() == 0][0])
            raise ValueError(f"split must hold every image once at most, got image {image} twice")
        part_of[index] = number
    return part_of


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
