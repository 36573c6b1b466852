"""Everything the learners read, in memory on one device: images, labels, the split, who holds what and who trains what."""

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
    """images: uint8 or float [N, c, H, W]; targets, known: bool [N, T]; identity: int64 [N]; num_exclusive: see `Subtasks`;
    clients: what each holds, indices into the images, all of them training images;
    assignment: bool [C, T], which client trains which subtask; positives, negatives: int64 [C, T], the labels each client holds;
    num_source: how many of the subtasks, the last ones, are trained along and not tested (see `instances`).
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
        return len(self.clients)

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    @property
    def num_tested(self) -> int:
        """How many of the subtasks, the first ones, are what the model is for."""
        return self.num_tasks - self.num_source

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> Self:
        """The tensors that the hot path reads, on `device`; the others stay on the CPU."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "targets", "known", "identity")}
        split = Split(*(part.to(device) for part in dataclasses.astuple(self.split)))
        return dataclasses.replace(self, **moved, split=split, clients=self.clients.to(device))

    def pooled(self) -> Self:
        """What all clients hold on one client that trains every subtask."""
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
    """Split the training images over clients and the subtasks over the clients; what cannot be trained is refused with the reason.

    pooled: whether the images of all clients are trained on together. Then the assignment only says whose subtasks a client's metrics
    are of, and a client that could not train alone is no reason to refuse.
    """
    present = data.classes[split.train].unique()
    if not data.attribute_names and len(present) < 2:
        raise ValueError(f"data {data.name} must hold at least 2 classes in the training images, got {len(present)}")
    _check_watched(subtasks, split)
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


def _check_watched(subtasks: Subtasks, split: Split) -> None:
    """The validation and test images must define the metric that a run is judged by, or there is nothing to see."""
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
