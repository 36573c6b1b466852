"""What each client sees in a round: batches as indices, a mask for the padding, and the random draws of the augmentation.

Everything is a function of (seed, round, client), so every backend trains on the same batches in the same order.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.data.transforms import DRAWS
from mtl.seeding import generator


@dataclass(frozen=True)
class LocalWork:
    """How much a client trains in a round: `steps` optimiser steps, or `epochs` passes over its images where steps is None.

    An epoch is a fresh order of the client's images cut into batches of `batch_size`, the last one smaller.
    """

    batch_size: int = 16
    steps: int | None = None
    epochs: int = 1

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("epochs", self.epochs), ("steps", self.steps)):
            if value is not None and value < 1:
                raise ValueError(f"work.{name} must be >= 1, got {value}")

    def num_steps(self, num_images: int) -> int:
        return self.steps if self.steps is not None else self.epochs * math.ceil(num_images / self.batch_size)


@dataclass(frozen=True)
class ClientBatches:
    """index: int64 [S, B] into the client's images; valid: bool [S, B], false where padded; draw: float [S, B, DRAWS] in 0..1."""

    index: Tensor
    valid: Tensor
    draw: Tensor

    def __len__(self) -> int:
        return len(self.index)


def plan_batches(num_images: int, work: LocalWork, *, seed: int, round: int, client: int) -> ClientBatches:
    """The batches of one client in one round, on the CPU."""
    rng = generator(seed, "batches", round, client)
    steps, size = work.num_steps(num_images), work.batch_size
    per_epoch = math.ceil(num_images / size)
    index = torch.zeros(math.ceil(steps / per_epoch), per_epoch * size, dtype=torch.long)
    for epoch in index:
        epoch[:num_images] = torch.randperm(num_images, generator=rng)
    valid = (torch.arange(per_epoch * size) < num_images).expand_as(index)
    draw = torch.rand(steps, size, DRAWS, generator=rng)
    return ClientBatches(index.reshape(-1, size)[:steps], valid.reshape(-1, size)[:steps], draw)
