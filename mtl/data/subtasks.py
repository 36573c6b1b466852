"""Binary subtasks from what is known of each image.

Unknown labels are a mask and never a guess: `targets[i, t]` counts only where `known[i, t]`. A name may be a number, in quotes or
without: `subtasks.classes=[7,12]` are the classes "7" and "12".
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base.types import ImageData


@dataclass(frozen=True)
class Subtasks:
    """Binary questions about images, with their answers where these are known.

    An image is a positive of at most one of the first `num_exclusive` subtasks, so that their scores can be fused to one decision.

    Attributes:
        names: of the T subtasks.
        targets: bool [N, T].
        known: bool [N, T], where the label is known.
        num_exclusive: how many subtasks, the first ones, exclude one another.

    Raises:
        ValueError: for a name that `metrics.csv` cannot hold in one field, or that is not text.
    """

    names: tuple[str, ...]
    targets: Tensor
    known: Tensor
    num_exclusive: int

    def __post_init__(self) -> None:
        for name in self.names:
            # Control characters, separators of lines and paragraphs, and halves of surrogate pairs, which no encoding writes.
            if not name or any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in name):
                raise ValueError(
                    f"subtasks must have names without line breaks and other control characters, got {name!a}; rename the class folder, "
                    "class or attribute"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identity(self) -> Tensor:
        """The exclusive subtask that each image is a positive of, int64 [N], or -1."""
        if not self.num_exclusive:
            return torch.full((len(self.targets),), -1)
        rivals = self.targets[:, : self.num_exclusive]
        return torch.where(rivals.any(1), rivals.int().argmax(1), -1)


def one_vs_rest(data: ImageData, *, classes: Sequence[str | int] | None = None) -> Subtasks:
    """One subtask per class or identity: is it this one?

    Images of the other classes are negatives of every subtask; images of an unknown class are masked.

    Args:
        data: the images with their classes and attributes.
        classes: the classes to keep, in that order, None for all.
    """
    names = data.class_names if classes is None else _as_names("subtasks.classes", classes)
    index = torch.tensor(_positions("subtasks.classes", names, data.class_names))
    if len(names) < 2:
        raise ValueError(f"subtasks.classes must name at least 2 of the classes of {data.name}, got {len(names)}: {list(names)}")
    targets = data.classes[:, None] == index
    return Subtasks(names, targets, _known_classes(data, len(names)), len(names))


def attributes(data: ImageData, *, names: Sequence[str | int] | None = None) -> Subtasks:
    """One subtask per attribute: is she smiling?

    Args:
        data: the images with their classes and attributes.
        names: the attributes to keep, in that order, None for all.
    """
    chosen = data.attribute_names if names is None else _as_names("subtasks.names", names)
    index = _positions("subtasks.names", chosen, data.attribute_names)
    if not chosen:
        raise ValueError(f"subtasks=attributes needs a data set with attributes, and {data.name} has none")
    values = data.attributes[:, index]
    return Subtasks(chosen, values == 1, values >= 0, 0)


def classes_and_attributes(
    data: ImageData, *, classes: Sequence[str | int] | None = None, names: Sequence[str | int] | None = None
) -> Subtasks:
    """The subtasks of `one_vs_rest` and those of `attributes`: who is she, and is she smiling?

    Args:
        data: the images with their classes and attributes.
        classes: the classes to keep, in that order, None for all.
        names: the attributes to keep, in that order, None for all.
    """
    who, how = one_vs_rest(data, classes=classes), attributes(data, names=names)
    if both := sorted(set(who.names) & set(how.names)):
        raise ValueError(f"classes and attributes of {data.name} must have different names, got {', '.join(both)} as both")
    targets, known = torch.cat([who.targets, how.targets], 1), torch.cat([who.known, how.known], 1)
    return Subtasks(who.names + how.names, targets, known, who.num_exclusive)


def groups(data: ImageData, *, mapping: Mapping[str | int, Sequence[str | int]]) -> Subtasks:
    """One subtask per group of classes: is it an animal?

    Args:
        data: the images with their classes and attributes.
        mapping: the classes of each group, {"animal": ["cat", "dog"], "vehicle": ["truck"]}. A class may be in several groups.
    """
    if not mapping:
        raise ValueError("subtasks.mapping must name at least one group of classes, got none")
    names, columns = _as_names("subtasks.mapping", list(mapping)), []
    for name, members in zip(names, mapping.values(), strict=True):
        field = f"subtasks.mapping.{name}"
        places = _positions(field, _as_names(field, members), data.class_names)
        columns.append(torch.isin(data.classes, torch.tensor(places)))
    targets = torch.stack(columns, dim=1)
    exclusive = len(mapping) > 1 and bool((targets.sum(1) <= 1).all())
    return Subtasks(names, targets, _known_classes(data, len(mapping)), len(mapping) if exclusive else 0)


def _known_classes(data: ImageData, num_tasks: int) -> Tensor:
    return (data.classes >= 0)[:, None].expand(-1, num_tasks).clone()


def _as_names(field: str, values: Sequence[str | int]) -> tuple[str, ...]:
    """Names as text: whole numbers are names too; what YAML reads as another type must be in quotes."""
    for name in values:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f"{field} must hold names, got {name} ({type(name).__name__}); as a name it needs quotes")
    return tuple(map(str, values))


def _positions(field: str, names: Sequence[str], choices: Sequence[str]) -> list[int]:
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise ValueError(f"{field} must be among {', '.join(choices) or '(none in this data set)'}, got {', '.join(unknown)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{field} must not name the same thing twice, got {list(names)}")
    place = {name: i for i, name in enumerate(choices)}
    return [place[name] for name in names]
