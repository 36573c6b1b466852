"""Which client holds which training images.

Every rule gives a list of C index tensors: each image is on exactly one client, no client is empty, and the result depends on the
seed alone. `labels` is the class of each image ([N], -1 where not known, which counts as a class of its own).
"""

import torch
from torch import Tensor

from mtl.seeding import generator

Partition = list[Tensor]


def iid(labels: Tensor, seed: int, *, num_clients: int = 8) -> Partition:
    """Shuffled and dealt out evenly."""
    _check_clients(num_clients, len(labels))
    order = torch.randperm(len(labels), generator=generator(seed, "partition"))
    return _sorted(list(order.tensor_split(num_clients)))


def by_class(labels: Tensor, seed: int, *, num_clients: int = 8) -> Partition:
    """Class owners: the classes are shuffled and dealt out evenly, and a client holds every image of its classes."""
    _check_clients(num_clients, len(labels))
    present = labels.unique()
    if len(present) < num_clients:
        raise ValueError(f"partition.num_clients must be at most the {len(present)} classes to be owned, got {num_clients}")
    order = present[torch.randperm(len(present), generator=generator(seed, "partition"))]
    return [torch.nonzero(torch.isin(labels, owned)).flatten() for owned in order.tensor_split(num_clients)]


def dirichlet(labels: Tensor, seed: int, *, num_clients: int = 8, alpha: float = 0.5, min_images: int = 1) -> Partition:
    """Each class is spread over the clients in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv:1909.06335).

    The draw is done once. Clients left with fewer than `min_images` are then given random images of the largest clients, so
    that small alphas neither loop nor leave a client empty.
    """
    if not alpha > 0:
        raise ValueError(f"partition.alpha must be > 0, got {alpha}")
    _check_clients(num_clients, len(labels))
    if not 1 <= min_images <= len(labels) // num_clients:
        raise ValueError(f"partition.min_images must be in [1, {len(labels) // num_clients}], got {min_images}")
    rng = generator(seed, "partition")
    owner = torch.empty(len(labels), dtype=torch.long)
    for c in labels.unique():
        members = torch.nonzero(labels == c).flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        # A tiny alpha underflows every gamma draw to zero; the floor keeps the proportions finite.
        share = torch._standard_gamma(torch.full((num_clients,), alpha, dtype=torch.float64), generator=rng).clamp_min(1e-300)
        bounds = (share / share.sum()).cumsum(0)
        position = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        owner[members] = torch.searchsorted(bounds, position).clamp_max(num_clients - 1)
    return _at_least(owner, num_clients, min_images, rng)


def shards(labels: Tensor, seed: int, *, num_clients: int = 8, classes_per_client: int = 2) -> Partition:
    """k classes per client: class slots are dealt evenly, and a class's images are shared evenly by the clients that drew it."""
    _check_clients(num_clients, len(labels))
    present = labels.unique()
    if not 1 <= classes_per_client <= len(present):
        raise ValueError(f"partition.classes_per_client must be in [1, {len(present)}], got {classes_per_client}")
    slots = num_clients * classes_per_client
    if slots < len(present):
        raise ValueError(
            f"partition.num_clients x partition.classes_per_client must be at least the {len(present)} classes, "
            f"or images would be on no client; got {num_clients} x {classes_per_client}"
        )
    rng = generator(seed, "partition")
    holders: list[list[int]] = [[] for _ in present]
    order = torch.randperm(len(present), generator=rng).tolist()
    # A client takes a run of consecutive slots of the shuffled classes, repeated: never the same class twice.
    for slot in range(slots):
        holders[order[slot % len(present)]].append(slot // classes_per_client)
    parts: list[list[Tensor]] = [[] for _ in range(num_clients)]
    for c, clients in zip(present, holders, strict=True):
        members = torch.nonzero(labels == c).flatten()
        if len(members) < len(clients):
            raise ValueError(
                f"partition.classes_per_client shares class {int(c)} among {len(clients)} clients, and it has {len(members)} images"
            )
        members = members[torch.randperm(len(members), generator=rng)]
        for client, piece in zip(clients, members.tensor_split(len(clients)), strict=True):
            parts[client].append(piece)
    return _sorted([torch.cat(part) for part in parts])


def quantity_skew(labels: Tensor, seed: int, *, num_clients: int = 8, sigma: float = 1.0, min_images: int = 1) -> Partition:
    """iid images in amounts proportional to exp(sigma N(0, 1)): log-normal client sizes."""
    if not sigma >= 0:
        raise ValueError(f"partition.sigma must be >= 0, got {sigma}")
    _check_clients(num_clients, len(labels))
    if not 1 <= min_images <= len(labels) // num_clients:
        raise ValueError(f"partition.min_images must be in [1, {len(labels) // num_clients}], got {min_images}")
    rng = generator(seed, "partition")
    share = (sigma * torch.randn(num_clients, generator=rng, dtype=torch.float64)).softmax(0)
    spare = len(labels) - num_clients * min_images
    ends = (share.cumsum(0) * spare).round().long()
    ends[-1] = spare
    sizes = ends.diff(prepend=torch.zeros(1, dtype=torch.long)) + min_images
    return _sorted(list(torch.randperm(len(labels), generator=rng).split(sizes.tolist())))


def per_label(labels: Tensor, seed: int) -> Partition:
    """One client per label: with `partition_by=owner` the data's own devices, with `partition_by=class` one person per device."""
    return [torch.nonzero(labels == label).flatten() for label in labels.unique()]


def _at_least(owner: Tensor, num_clients: int, min_images: int, rng: torch.Generator) -> Partition:
    sizes = owner.bincount(minlength=num_clients)
    while sizes.min() < min_images:
        poorest, richest = int(sizes.argmin()), int(sizes.argmax())
        held = torch.nonzero(owner == richest).flatten()
        owner[held[torch.randint(len(held), (1,), generator=rng)]] = poorest
        sizes[poorest] += 1
        sizes[richest] -= 1
    return [torch.nonzero(owner == client).flatten() for client in range(num_clients)]


def _check_clients(num_clients: int, num_images: int) -> None:
    if not 1 <= num_clients <= num_images:
        raise ValueError(f"partition.num_clients must be in [1, {num_images}], the number of training images, got {num_clients}")


def _sorted(parts: Partition) -> Partition:
    return [part.sort().values for part in parts]
