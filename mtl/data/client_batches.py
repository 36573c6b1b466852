"""What the clients of a cohort see in a round: batches as indices into the images, and the keys of everything that is random.

Everything is a function of (seed, round, client), so every backend trains on the same batches in the same order, and a client's do not
depend on who else takes part.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base.seeding import client_keys, random_bits, random_uniform, split_key
from mtl.data.ragged import Ragged
from mtl.data.transforms import DRAWS

ORDER, AUGMENTATION, DROPOUT, BALANCE = range(4)  # what the parts of a client's key are for


@dataclass(frozen=True)
class LocalWork:
    """How much a client trains in a round.

    An epoch is a fresh order of the client's images cut into batches of `batch_size`, the last one smaller.

    Args:
        batch_size: images in a batch.
        steps: optimiser steps in a round, None counts epochs.
        epochs: passes over the client's images in a round, where steps is None.
    """

    batch_size: int = 16
    steps: int | None = None
    epochs: int = 1

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("epochs", self.epochs), ("steps", self.steps)):
            if value is not None and value < 1:
                raise ValueError(f"work.{name} must be >= 1, got {value}")

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps in a round of a client with that many images."""
        return self.steps if self.steps is not None else self.epochs * math.ceil(num_images / self.batch_size)

    def num_samples(self, num_images: int) -> int:
        """Images seen in all steps, the same image as often as it is seen."""
        per_epoch = math.ceil(num_images / self.batch_size)
        epochs, rest = divmod(self.num_steps(num_images), per_epoch)
        return epochs * num_images + min(rest * self.batch_size, num_images)


@dataclass(frozen=True)
class CohortBatches:
    """The batches of K clients, step after step; the client with most steps comes first.

    No row is padding, and B is the largest batch of these.

    Attributes:
        active: how many clients take step s, always the first ones; the rows of step s follow those of step s - 1.
        index: int64 [rows, B] into the images, padded with an image of the same client.
        filled: int64 [rows], how many of a batch count, the first ones.
        client: int64 [rows], which of the K.
        step: int32 [rows].
        key: int32 [K, 2].
        batch_size: of the work, B or more: the draws of an image are counted by it, so that they do not depend on B.
    """

    active: tuple[int, ...]
    index: Tensor
    filled: Tensor
    client: Tensor
    step: Tensor
    key: Tensor
    batch_size: int

    @property
    def valid(self) -> Tensor:
        """Bool [rows, B], false where a batch is padded."""
        return torch.arange(self.index.shape[1], device=self.index.device) < self.filled[:, None]

    def draws(self, rows: slice) -> Tensor:
        """The uniform draws of the augmentation, [len(rows), B, DRAWS]."""
        size = self.index.shape[1]
        within = torch.arange(size * DRAWS, dtype=torch.int32, device=self.index.device)
        place = self.step[rows, None] * (self.batch_size * DRAWS) + within
        return random_uniform(self._part(rows, AUGMENTATION)[:, None], place).view(-1, size, DRAWS)

    def dropout_keys(self, rows: slice, num_layers: int) -> Tensor:
        """A key for each dropout layer in each row, int32 [len(rows), L, 2]."""
        layers = torch.arange(num_layers, dtype=torch.int32, device=self.index.device)
        return split_key(self._part(rows, DROPOUT)[:, None], self.step[rows, None] * num_layers + layers)

    def balance_key(self, rows: slice) -> Tensor:
        """The key of a balancer's draws in each row, int32 [len(rows), 2]."""
        return split_key(self._part(rows, BALANCE), self.step[rows])

    def _part(self, rows: slice, part: int) -> Tensor:
        return part_of_key(self.key, part)[self.client[rows]]


def part_of_key(key: Tensor, part: int) -> Tensor:
    """The key of one purpose, int32 [..., 2]."""
    return split_key(key, torch.tensor(part, dtype=torch.int32, device=key.device))


def plan_batches(
    client_images: Ragged, clients: Sequence[int], work: LocalWork, *, seed: int, round: int, max_steps: int | None = None
) -> CohortBatches:
    """The batches of some clients in a round.

    Args:
        client_images: the images of each client of the federation.
        clients: the clients to plan for, the one with most steps first.
        work: how much a client trains.
        seed: of the run.
        round: from 0.
        max_steps: stop after so many steps; None for all.
    """
    device = client_images.values.device
    largest = min(work.batch_size, max((client_images.size(client) for client in clients), default=1))
    steps = [work.num_steps(client_images.size(client)) for client in clients]
    if max_steps is not None:
        steps = [min(count, max_steps) for count in steps]
    assert all(before >= after for before, after in itertools.pairwise(steps))
    key = client_keys(seed, "client", round, clients).to(device)
    # One plan for all clients of a size: their shapes are the same.
    same_size: dict[int, list[int]] = {}
    for place, client in enumerate(clients):
        same_size.setdefault(client_images.size(client), []).append(place)
    parts, filled, places = [], [], []
    for group in same_size.values():
        count = steps[group[0]]
        images = torch.stack([client_images[clients[place]] for place in group])
        index, full = _plan(images, part_of_key(key[group], ORDER), count, work.batch_size)
        parts.append(index.reshape(-1, work.batch_size)[:, :largest])
        filled.append(full.repeat(len(group)))
        places.append(torch.tensor(group).repeat_interleave(count))
    owner = torch.cat(places)
    step = torch.cat([torch.arange(steps[group[0]]).repeat(len(group)) for group in same_size.values()])
    order = (step * len(clients) + owner).argsort()
    active = torch.bincount(step).tolist()
    moved = order.to(device)
    return CohortBatches(
        active=tuple(active),
        index=torch.cat(parts)[moved],
        filled=torch.cat(filled)[order].to(device),
        client=owner[order].to(device),
        step=step[order].int().to(device),
        key=key,
        batch_size=work.batch_size,
    )


def _plan(images: Tensor, key: Tensor, steps: int, size: int) -> tuple[Tensor, Tensor]:
    """Batches [G, steps, size] of clients with n images each, and how many images each step counts, [steps].

    Args:
        images: int64 [G, n].
        key: int32 [G, 2].
        steps: of each client.
        size: of a batch.
    """
    num_images = images.shape[1]
    per_epoch = math.ceil(num_images / size)
    epochs = math.ceil(steps / per_epoch)
    place = torch.arange(epochs * num_images, dtype=torch.int32, device=images.device).view(epochs, num_images)
    order = random_bits(key[:, None, None], place).argsort(stable=True, dim=-1)
    chosen = images[:, None].expand(-1, epochs, -1).gather(-1, order)
    # Padding repeats an image of the client: no other client's numbers can enter, not even one that is not finite.
    padded = torch.cat([chosen, chosen[..., :1].expand(-1, -1, per_epoch * size - num_images)], -1)
    filled = (num_images - torch.arange(per_epoch) * size).clamp(max=size).repeat(epochs)
    return padded.view(len(images), -1, size)[:, :steps], filled[:steps]
