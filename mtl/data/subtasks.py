"""Binary subtasks from what is known of each image.

Unknown labels are a mask and never a guess: `targets[i, t]` counts only where `known[i, t]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.types import ImageData


@dataclass(frozen=True)
class Subtasks:
    """names: T of them; targets, known: bool [N, T]; identity: int64 [N], the one subtask that image i is a positive of, or -1.

    An image is a positive of at most one of the first `num_exclusive` subtasks, so that their scores can be fused to one decision.
    """

    names: tuple[str, ...]
    targets: Tensor
    known: Tensor
    num_exclusive: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identity(self) -> Tensor:
        if not self.num_exclusive:
            return torch.full((len(self.targets),), -1)
        rivals = self.targets[:, : self.num_exclusive]
        return torch.where(rivals.any(1), rivals.int().argmax(1), -1)


def one_vs_rest(data: ImageData, *, classes: Sequence[str] | None = None) -> Subtasks:
    """One subtask per class or identity: is it this one? `classes` keeps some of them, in that order.

    Images of the other classes are negatives of every subtask; images of an unknown class are masked.
    """
    names = tuple(data.class_names if classes is None else classes)
    index = torch.tensor(_positions("subtasks.classes", names, data.class_names))
    if len(names) < 2:
        raise ValueError(f"subtasks.classes must name at least 2 of the classes of {data.name}, got {len(names)}: {list(names)}")
    targets = data.classes[:, None] == index
    return Subtasks(names, targets, _known_classes(data, len(names)), len(names))


def attributes(data: ImageData, *, names: Sequence[str] | None = None) -> Subtasks:
    """One subtask per attribute: is she smiling? `names` keeps some of them, in that order."""
    chosen = tuple(data.attribute_names if names is None else names)
    index = _positions("subtasks.names", chosen, data.attribute_names)
    if not chosen:
        raise ValueError(f"subtasks=attributes needs a data set with attributes, and {data.name} has none")
    values = data.attributes[:, index]
    return Subtasks(chosen, values == 1, values >= 0, 0)


def classes_and_attributes(
    data: ImageData, *, classes: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> Subtasks:
    """Those of `one_vs_rest`, then those of `attributes`: who is she, and is she smiling?"""
    who, how = one_vs_rest(data, classes=classes), attributes(data, names=names)
    if both := sorted(set(who.names) & set(how.names)):
        raise ValueError(f"classes and attributes of {data.name} must have different names, got {', '.join(both)} as both")
    targets, known = torch.cat([who.targets, how.targets], 1), torch.cat([who.known, how.known], 1)
    return Subtasks(who.names + how.names, targets, known, who.num_exclusive)


def groups(data: ImageData, *, mapping: Mapping[str, Sequence[str]]) -> Subtasks:
    """One subtask per group of classes: {"animal": ["cat", "dog"], "vehicle": ["truck"]}. A class may be in several groups."""
    if not mapping:
        raise ValueError("subtasks.mapping must name at least one group of classes, got none")
    targets = torch.stack(
        [
            torch.isin(data.classes, torch.tensor(_positions(f"subtasks.mapping.{name}", members, data.class_names)))
            for name, members in mapping.items()
        ],
        dim=1,
    )
    exclusive = len(mapping) > 1 and bool((targets.sum(1) <= 1).all())
    return Subtasks(tuple(mapping), targets, _known_classes(data, len(mapping)), len(mapping) if exclusive else 0)


def _known_classes(data: ImageData, num_tasks: int) -> Tensor:
    return (data.classes >= 0)[:, None].expand(-1, num_tasks).clone()


def _positions(field: str, names: Sequence[str], choices: Sequence[str]) -> list[int]:
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise ValueError(f"{field} must be among {', '.join(choices) or '(none in this data set)'}, got {', '.join(unknown)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{field} must not name the same thing twice, got {list(names)}")
    place = {name: i for i, name in enumerate(choices)}
    return [place[name] for name in names]
