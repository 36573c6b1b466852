"""The batches of local steps, prepared many at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.profiler import record_function

from mtl.data.client_batches import CohortBatches
from mtl.data.federated_data import FederatedData
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.multi_task_model import MultiTaskModel

CHUNK = 2**23  # pixels that are prepared at once


@dataclass(frozen=True)
class Batch:
    """One batch, or many along leading axes: steps, or the clients of a stack.

    Attributes:
        inputs: [..., B, c, H, W], prepared images.
        targets: bool [..., B, T].
        mask: bool [..., B, T], the labels that are known and trained.
        valid: bool [..., B], False where a row is padding.
        keys: int32 [..., L, 2], keys of the L dropout layers.
        draw_key: int32 [..., 2], key of the balancer's random numbers.
        positives: [..., T], see `TaskCounts`.
        negatives: [..., T], see `TaskCounts`.
        progress: [...], see `TaskCounts`.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    valid: Tensor
    keys: Tensor
    draw_key: Tensor
    positives: Tensor
    negatives: Tensor
    progress: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors in the order of the fields."""
        labels = (self.inputs, self.targets, self.mask, self.valid)
        return (*labels, self.keys, self.draw_key, self.positives, self.negatives, self.progress)

    def __getitem__(self, place: int | slice) -> "Batch":
        """Return some of the batches along the first axis."""
        return Batch(*(value[place] for value in self.tensors()))

    def first(self, count: int) -> "Batch":
        """Return the first `count` images of a single batch."""
        return Batch(self.inputs[:count], self.targets[:count], self.mask[:count], self.valid[:count], *self.tensors()[4:])

    @property
    def counts(self) -> TaskCounts:
        """The number of labels of each kind that the client has."""
        return TaskCounts(self.positives, self.negatives, self.progress)

    @property
    def active(self) -> Tensor:
        """The tasks with a known label in the batch, bool [..., T]."""
        return (self.mask & self.valid[..., None]).any(-2)


@record_function("mtl/images")
def prepare(
    objective: Objective,
    model: MultiTaskModel,
    batches: CohortBatches,
    rows: slice,
    tasks: Tensor,
    counts: TaskCounts,
    data: FederatedData,
) -> Batch:
    """Gather, augment and normalise the images of many batches at once.

    Args:
        objective: prepares the images.
        model: its dtype and its dropout layers shape the batch.
        batches: the batches of the clients.
        rows: which of `batches`.
        tasks: bool [K, T], the subtasks that each client trains.
        counts: label counts [K, T] and progress [K] of each client.
        data: images and labels.
    """
    index, client = batches.index[rows], batches.client[rows]
    dtype = next(model.parameters()).dtype
    draws = batches.draws(rows).flatten(0, 1) if objective.augmentation.changes else None
    inputs = objective.inputs(data.images[index.flatten()], draws, dtype=dtype)
    return Batch(
        inputs=inputs.unflatten(0, index.shape),
        targets=data.targets[index],
        mask=data.known[index] & tasks[client, None],
        valid=batches.valid[rows],
        keys=batches.dropout_keys(rows, len(model.dropouts)),
        draw_key=batches.balance_key(rows),
        positives=counts.positives[client],
        negatives=counts.negatives[client],
        progress=counts.progress[client],
    )


def chunks(batches: CohortBatches, pixels: int) -> Iterator[tuple[range, slice]]:
    """Yield ranges of steps with their rows, each of about `CHUNK` pixels. `pixels` is the number of pixels of a batch."""
    first, start, end = 0, 0, 0
    for step, active in enumerate(batches.active):
        if end > start and (end - start + active) * pixels > CHUNK:
            yield range(first, step), slice(start, end)
            first, start = step, end
        end += active
    if end > start:
        yield range(first, len(batches.active)), slice(start, end)
