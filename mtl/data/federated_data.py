"""Everything the learners read, in memory on one device: images, labels, the split, the partition and the assignment."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mtl.base.types import ImageData
from mtl.data.assignment import check_assignment
from mtl.data.partition import Partition
from mtl.data.ragged import Ragged
from mtl.data.splits import Split
from mtl.data.subtasks import Subtasks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FederatedData:
    """Images and labels, the split, which client holds which images, and which client trains which subtasks.

    Attributes:
        name: of the data set.
        images: uint8 or float [N, c, H, W].
        tasks: names of the subtasks.
        targets: bool [N, T].
        known: bool [N, T], where the label is known.
        identity: int64 [N], the exclusive subtask that the image is a positive of, or -1.
        num_exclusive: see `Subtasks`.
        split: training, validation and test images.
        clients: indices of the training images of each client.
        assignment: bool [C, T], which client trains which subtask.
        positives: int64 [C, T], known positives of each client.
        negatives: int64 [C, T], known negatives of each client.
        num_source: how many subtasks, the last ones, are trained but not tested (see `instances`).
    """

    name: str
    tasks: tuple[str, ...]
    images: Tensor
    targets: Tensor
    known: Tensor
    identity: Tensor
    num_exclusive: int
    split: Split
    clients: Ragged
    assignment: Tensor
    positives: Tensor
    negatives: Tensor
    num_source: int = 0

    @property
    def num_clients(self) -> int:
        """The number of clients, C."""
        return len(self.clients)

    @property
    def num_tasks(self) -> int:
        """The number of subtasks, T."""
        return len(self.tasks)

    @property
    def num_tested(self) -> int:
        """The number of subtasks that are tested, the first ones."""
        return self.num_tasks - self.num_source

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image: (channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> Self:
        """A copy with the tensors of the hot path on `device`; the others stay on the CPU."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "targets", "known", "identity")}
        split = Split(*(part.to(device) for part in dataclasses.astuple(self.split)))
        return dataclasses.replace(self, **moved, split=split, clients=self.clients.to(device))

    def pooled(self) -> Self:
        """The images of all clients on one client that trains every subtask."""
        return dataclasses.replace(
            self,
            clients=Ragged.of([self.clients.values.sort().values]),
            assignment=torch.ones_like(self.assignment[:1]),
            positives=self.positives.sum(0, keepdim=True),
            negatives=self.negatives.sum(0, keepdim=True),
        )

    def single_tasks(self) -> Self:
        """The same images and labels as many times as there are subtasks: client t holds all of them and trains subtask t alone."""
        whole, tasks = self.pooled(), self.num_tasks
        return dataclasses.replace(
            whole,
            clients=Ragged.of([whole.clients.values] * tasks),
            assignment=torch.eye(tasks, dtype=torch.bool, device=whole.assignment.device),
            positives=whole.positives.expand(tasks, -1).clone(),
            negatives=whole.negatives.expand(tasks, -1).clone(),
        )


def federate(
    data: ImageData,
    subtasks: Subtasks,
    split: Split,
    *,
    partition: Callable[[Tensor, int], Partition],
    partition_by: str,
    assignment: Callable[[Tensor, int], Tensor],
    seed: int,
    pooled: bool = False,
) -> FederatedData:
    """Split the training images over clients, and the subtasks too.

    Args:
        data: the images with their classes and attributes.
        subtasks: their targets.
        split: training, validation and test images.
        partition: labels and seed to the images of each client.
        partition_by: class, owner or an attribute: what the images are dealt out by.
        assignment: positives of each client and seed to a bool matrix [C, T].
        seed: of the random draws.
        pooled: whether one model trains on all images; the assignment then only says which subtasks a client's metrics are about.

    Raises:
        ValueError: where something cannot be trained, with the reason.
    """
    present = data.classes[split.train].unique()
    if not data.attribute_names and len(present) < 2:
        raise ValueError(f"data {data.name} must hold at least 2 classes in the training images, got {len(present)}")
    _check_monitored(subtasks, split)
    places = partition(_labels(data, partition_by)[split.train], seed)
    clients = Ragged.of([split.train[place] for place in places])
    left_over = len(split.train) - len(clients.values)
    if left_over:
        logger.info("%d of %d training images are on no client", left_over, len(split.train))
        split = dataclasses.replace(split, train=clients.values.sort().values)
    positives, negatives = (sum_by_client(clients, chosen & subtasks.known) for chosen in (subtasks.targets, ~subtasks.targets))
    assigned = assignment(positives, seed)
    if pooled:
        everything = torch.ones_like(assigned[:1])
        check_assignment(everything, positives.sum(0, keepdim=True), torch.tensor([len(clients.values)]), subtasks.names)
    else:
        only_positives = int(((negatives * assigned).sum(1) == 0).sum())
        if only_positives:
            logger.warning("%d of %d clients hold only positives of what they train", only_positives, len(clients))
        check_assignment(assigned, positives, torch.tensor(clients.sizes), subtasks.names)
    return FederatedData(
        name=data.name,
        tasks=subtasks.names,
        images=data.images,
        targets=subtasks.targets,
        known=subtasks.known,
        identity=subtasks.identity,
        num_exclusive=subtasks.num_exclusive,
        split=split,
        clients=clients,
        assignment=assigned,
        positives=positives,
        negatives=negatives,
    )


def sum_by_client(clients: Ragged, labels: Tensor) -> Tensor:
    """How many of the labels, bool [N, T], are true among the images of each client, int64 [C, T]."""
    owner = torch.arange(len(clients)).repeat_interleave(torch.tensor(clients.sizes))
    sums = torch.zeros(len(clients), labels.shape[1], dtype=torch.long)
    return sums.index_add_(0, owner, labels[clients.values].long())


def _check_monitored(subtasks: Subtasks, split: Split) -> None:
    """Raise ValueError unless validation and test images define the metrics that a run is judged by."""
    for name, index in (("val", split.val), ("test", split.test)):
        targets, known = subtasks.targets[index], subtasks.known[index]
        two_sided = ((targets & known).any(0) & (~targets & known).any(0)).any()
        if len(index) and not two_sided:
            raise ValueError(
                f"split.{name} must leave a positive and a negative of some subtask among its {len(index)} images, and there is none"
            )


def _labels(data: ImageData, by: str) -> Tensor:
    if by == "class":
        return data.classes
    if by == "owner":
        if data.owners is None:
            raise ValueError(f"partition_by=owner needs data that say which device made each image, and {data.name} does not")
        return data.owners
    if by in data.attribute_names:
        return data.attributes[:, data.attribute_names.index(by)].long()
    raise ValueError(f"partition_by must be one of {', '.join(('class', 'owner', *data.attribute_names))}, got {by}")
