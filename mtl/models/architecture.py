"""What an architecture is made of: it returns a trunk and heads, which `MultiTaskModel` joins with the loss.

    trunk   images [B, c, H, W] to a representation: a tensor or a tuple of tensors, images first; shared by all clients
    heads   a representation to logits [B, T]; every parameter has the subtasks as its first axis and belongs to its subtask

What several subtasks use cannot belong to one of them, and so is part of the trunk: the trunk or the attention of a group of subtasks is
averaged over all clients. The update of a client that trains none of the group is zero there, but for weight decay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl.models.cnn import ImageShape, Trunk

Representation = Tensor | tuple[Tensor, ...]
Groups = int | list[list[int | str]]


@dataclass(frozen=True)
class Parts:
    """What an architecture builds on.

    Attributes:
        make_trunk: makes another trunk, with its own initial values, at each call.
        make_heads: makes heads for features of a width.
        trunk_name: as the configuration calls it.
        tasks: the names of the subtasks.
        image_shape: (channels, height, width) of an image.
    """

    make_trunk: Callable[[], Trunk]
    make_heads: Callable[[int], nn.Module]
    trunk_name: str
    tasks: tuple[str, ...]
    image_shape: ImageShape

    def staged_trunk(self, architecture: str) -> Trunk:
        """Make a trunk that is cut into stages.

        Raises:
            ValueError: where the trunk is no chain of layers.
        """
        trunk = self.make_trunk()
        if not trunk.stages:
            raise ValueError(f"architecture={architecture} needs a trunk in stages, and trunk={self.trunk_name} has none")
        return trunk


Architecture = Callable[[Parts], tuple[nn.Module, nn.Module]]


def shapes_of(stages: Sequence[nn.Module], image_shape: ImageShape) -> list[torch.Size]:
    """The output shape of each stage for one image: [c, H, W] or [h]."""
    shapes, inputs = [], torch.zeros(1, *image_shape)
    with torch.no_grad():
        for stage in stages:
            was_training = stage.training
            inputs = stage.eval()(inputs)
            stage.train(was_training)
            shapes.append(inputs.shape[1:])
    return shapes


def group_of_each(groups: Groups, tasks: Sequence[str]) -> Tensor:
    """The group of each subtask, int64 [T].

    Args:
        groups: a number, for that many runs of neighbouring subtasks, as even as can be; or lists of the names or numbers (from 0) of
            the subtasks in each.
        tasks: the names of the subtasks.

    Raises:
        ValueError: where these are not every subtask once.
    """
    if isinstance(groups, int):
        if not 1 <= groups <= len(tasks):
            raise ValueError(f"architecture.groups must be in [1, {len(tasks)}], the number of subtasks, got {groups}")
        sizes = torch.tensor([len(run) for run in torch.arange(len(tasks)).tensor_split(groups)])
        return torch.arange(groups).repeat_interleave(sizes)
    group_of_task = torch.full((len(tasks),), -1)
    for number, group in enumerate(groups):
        if not group:
            raise ValueError(f"architecture.groups must hold a subtask in each group, and group {number} is empty")
        for task in group:
            place = _place_of(task, tasks)
            if group_of_task[place] >= 0:
                raise ValueError(f"architecture.groups must hold every subtask once, and {tasks[place]} is there twice")
            group_of_task[place] = number
    if (group_of_task < 0).any():
        missing = ", ".join(tasks[place] for place in (group_of_task < 0).nonzero().flatten().tolist())
        raise ValueError(f"architecture.groups must hold every subtask once, and these are missing: {missing}")
    return group_of_task


def _place_of(task: int | str, tasks: Sequence[str]) -> int:
    if isinstance(task, int):
        if not 0 <= task < len(tasks):
            raise ValueError(f"architecture.groups must hold numbers of subtasks in [0, {len(tasks) - 1}], got {task}")
        return task
    if task not in tasks:
        raise ValueError(f"architecture.groups must hold subtasks among {', '.join(tasks)}, got {task}")
    return tasks.index(task)


def at_least_one(**options: int) -> None:
    """Raise ValueError for an option of an architecture below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"architecture.{name} must be >= 1, got {value}")
