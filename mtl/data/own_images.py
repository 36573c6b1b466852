"""Each client's own test images: dealt to it as its training images were.

Of the test images of each class a client gets the share that it holds of the training images of that class, rounded, and at least one
where it holds any. Where all subtasks are attributes, the same holds of the images with and of those without each of the A attributes,
with an A-th of the share. Together the clients have about as many own test images as there are test images, however many clients there
are.
"""

import torch
from torch import Tensor

from mtl.base.seeding import generator
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged


def own_test_images(data: FederatedData, seed: int) -> Ragged:
    """Return the positions of each client's own test images in `data.split.test`, in rising order."""
    test = data.split.test.cpu()
    targets, known = data.targets.cpu()[test], data.known.cpu()[test]
    kinds = [(targets, data.positives)]
    tasks = range(data.num_exclusive)
    if not data.num_exclusive:
        tasks, kinds = range(data.num_tested), [*kinds, (~targets, data.negatives)]
    parts = max(len(tasks), 1) if len(kinds) > 1 else 1
    pairs = [torch.zeros(2, 0, dtype=torch.long)]
    for kind, (labels, owned) in enumerate(kinds):
        for task in tasks:
            images = (labels[:, task] & known[:, task]).nonzero().flatten()
            order = torch.randperm(len(images), generator=generator(seed, "own test images", kind, task))
            pairs.append(_deal(images[order], owned[:, task].cpu().double(), parts))
    owner, position = torch.cat(pairs, 1)
    dealt = (owner * max(len(test), 1) + position).unique()
    owner, position = dealt // max(len(test), 1), dealt % max(len(test), 1)
    counts = torch.bincount(owner, minlength=data.num_clients)
    return Ragged(position, (0, *counts.cumsum(0).tolist()))


def _deal(images: Tensor, owned: Tensor, parts: int) -> Tensor:
    """Deal images in their order: to each client its share, [2, n] of clients and images.

    Args:
        images: int64 [n].
        owned: float64 [C], training images of each client.
        parts: the share is divided by this number.
    """
    holders = owned.nonzero().flatten()
    if not len(images) or not len(holders):
        return torch.zeros(2, 0, dtype=torch.long)
    shares = owned[holders] / owned.sum() * len(images) / parts
    counts = shares.round().long().clamp_min(1)
    first = (shares.cumsum(0) - shares).round().long()
    owner = holders.repeat_interleave(counts)
    within = torch.arange(len(owner)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.stack([owner, images[(first.repeat_interleave(counts) + within) % len(images)]])
