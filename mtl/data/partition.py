"""Which client holds which training images.

Every rule gives a list of C index tensors: each image is on exactly one client (with `sizes`, on one at most), no client is empty, and
the result depends on the seed alone. `labels` is the class of each image ([N], -1 where not known, which counts as a class of its own).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.base.seeding import generator

Partition = list[Tensor]


def iid(labels: Tensor, seed: int, *, num_clients: int = 8) -> Partition:
    """Images shuffled and dealt out evenly.

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        num_clients: clients.
    """
    _check_clients(num_clients, len(labels))
    order = torch.randperm(len(labels), generator=generator(seed, "partition"))
    return _sorted(list(order.tensor_split(num_clients)))


def by_class(labels: Tensor, seed: int, *, num_clients: int = 8) -> Partition:
    """Classes dealt out evenly: a client holds every image of its classes.

    The classes are shuffled first.

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        num_clients: clients.
    """
    _check_clients(num_clients, len(labels))
    present = labels.unique()
    if len(present) < num_clients:
        raise ValueError(f"partition.num_clients must be at most the {len(present)} classes to be owned, got {num_clients}")
    order = present[torch.randperm(len(present), generator=generator(seed, "partition"))]
    return [torch.nonzero(torch.isin(labels, owned)).flatten() for owned in order.tensor_split(num_clients)]


def sizes(labels: Tensor, seed: int, *, sizes: Sequence[float]) -> Partition:
    """Random images in given numbers, one number for each client.

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        sizes: whole numbers, or shares that add up to 1. Numbers may leave images over.
    """
    if not sizes or not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"partition.sizes must hold a number > 0 for each client, got {list(sizes)}")
    order = torch.randperm(len(labels), generator=generator(seed, "partition"))
    if all(float(size).is_integer() for size in sizes):
        counts = [int(size) for size in sizes]
        if sum(counts) > len(labels):
            raise ValueError(f"partition.sizes must add up to at most the {len(labels)} training images, got {sum(counts)}")
    elif abs(math.fsum(sizes) - 1) > 1e-6:
        raise ValueError(f"partition.sizes must be whole numbers, or shares that add up to 1, got {list(sizes)}")
    else:
        counts = _deal(torch.tensor(sizes, dtype=torch.float64), len(labels))
        if not all(counts):
            raise ValueError(f"partition.sizes must leave each client an image of {len(labels)}, got {list(sizes)}")
    return _sorted(list(order[: sum(counts)].split(counts)))


def dirichlet(labels: Tensor, seed: int, *, num_clients: int = 8, alpha: float = 0.5, min_images: int = 1) -> Partition:
    """Each class is spread over the clients in proportions drawn from Dirichlet(alpha).

    Yurochkin et al., ICML 2019, "Bayesian nonparametric federated learning of neural networks"; NIID-Bench, Li et al., ICDE 2022.

    Departures from NIID-Bench's code: a client that has a C-th of the images may still get more, and the draw is done once, not until
    each client has ten images. Clients left with fewer than `min_images` are then given random images of the largest clients, so that
    small alphas neither loop nor leave a client empty.

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        num_clients: clients.
        alpha: concentration, > 0; the smaller, the more uneven.
        min_images: least number of images of a client.
    """
    _check_alpha(alpha)
    _check_clients(num_clients, len(labels))
    if not 1 <= min_images <= len(labels) // num_clients:
        raise ValueError(f"partition.min_images must be in [1, {len(labels) // num_clients}], got {min_images}")
    rng = generator(seed, "partition")
    owner = torch.empty(len(labels), dtype=torch.long)
    for c in labels.unique():
        members = torch.nonzero(labels == c).flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        bounds = _log_gamma(torch.full((num_clients,), alpha, dtype=torch.float64), rng).softmax(0).cumsum(0)
        position = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        owner[members] = torch.searchsorted(bounds, position).clamp_max(num_clients - 1)
    return _at_least(owner, num_clients, min_images, rng)


def dirichlet_clients(labels: Tensor, seed: int, *, num_clients: int = 8, alpha: float = 0.5) -> Partition:
    """Clients of equal size, each with class proportions drawn from a Dirichlet distribution.

    q ~ Dirichlet(alpha p), p the shares of the classes in all images (Hsu, Qi & Brown 2019, "Measuring the effects of non-identical
    data distribution for federated visual classification", arXiv:1909.06335).

    The images are drawn without replacement, one client after the other; when a class is used up, q is scaled to sum to 1 over those
    that are left. All images are dealt out, so the last clients take what remains. A small alpha gives a client one class, as long as
    there is one with enough images; with a large one every client has p.

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        num_clients: clients.
        alpha: concentration, > 0; the smaller, the fewer classes a client has.
    """
    _check_alpha(alpha)
    _check_clients(num_clients, len(labels))
    rng = generator(seed, "partition")
    order = torch.randperm(len(labels), generator=rng)
    order = order[labels[order].sort(stable=True).indices]  # by class, in a random order within each
    _, left = labels[order].unique_consecutive(return_counts=True)
    start = left.cumsum(0) - left
    concentration = alpha * left.double() / len(labels)
    parts = []
    for piece in torch.arange(len(labels)).tensor_split(num_clients):
        likelihood, taken = _log_gamma(concentration, rng), torch.zeros_like(left)
        while (missing := len(piece) - int(taken.sum())) > 0:
            shares = likelihood.where(taken < left, -math.inf).softmax(0)
            drawn = torch.multinomial(shares, missing, replacement=True, generator=rng).bincount(minlength=len(left))
            taken = torch.minimum(taken + drawn, left)
        parts.append(torch.cat([order[s : s + n] for s, n in zip(start.tolist(), taken.tolist(), strict=True)]))
        start, left = start + taken, left - taken
    return _sorted(parts)


def shards(labels: Tensor, seed: int, *, num_clients: int = 8, shards_per_client: int = 2) -> Partition:
    """Images sorted by class and cut into equal pieces, a few of which each client gets at random.

    C x k shards, k for each client (McMahan et al., AISTATS 2017, "Communication-efficient learning of deep networks from
    decentralized data"): mostly k classes a client, seldom fewer, and more where a shard lies across the border of two classes.

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        num_clients: clients.
        shards_per_client: k.
    """
    _check_clients(num_clients, len(labels))
    if not 1 <= shards_per_client <= len(labels) // num_clients:
        raise ValueError(f"partition.shards_per_client must be in [1, {len(labels) // num_clients}], got {shards_per_client}")
    rng = generator(seed, "partition")
    order = torch.randperm(len(labels), generator=rng)
    order = order[labels[order].sort(stable=True).indices]
    pieces = order.tensor_split(num_clients * shards_per_client)
    dealt = torch.randperm(len(pieces), generator=rng).view(num_clients, shards_per_client)
    return _sorted([torch.cat([pieces[shard] for shard in shards_of_client]) for shards_of_client in dealt.tolist()])


def log_normal_labels(
    labels: Tensor,
    seed: int,
    *,
    num_clients: int = 8,
    classes_per_client: int = 2,
    sigma: float = 2.0,
    min_images: int = 5,
) -> Partition:
    """A few classes for each client, in log-normal amounts (the MNIST of FedProx).

    Client c has the classes c, c + 1, ..., c + k - 1 of a random circle of them, and a class's images are shared in proportions
    exp(sigma N(0, 1)), after `min_images` for each of its clients.

    That is the MNIST of FedProx (Li et al., MLSys 2020; the authors' data/mnist/generate_niid.py: 1,000 clients, k = 2, sigma = 2,
    min_images = 5). Departures: the circle is in random order, where the authors count 0, 1, ..., 9, and all images are dealt out,
    where they round down and leave out a share that goes beyond the end.

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        num_clients: clients.
        classes_per_client: k.
        sigma: spread of the amounts; 0 gives equal ones.
        min_images: least number of images of each class of a client.
    """
    _check_sigma(sigma)
    _check_clients(num_clients, len(labels))
    rng = generator(seed, "partition")
    present = labels.unique()
    circle = present[torch.randperm(len(present), generator=rng)]
    if not 1 <= classes_per_client <= len(present):
        raise ValueError(f"partition.classes_per_client must be in [1, {len(present)}], got {classes_per_client}")
    if num_clients + classes_per_client - 1 < len(present):
        raise ValueError(
            f"partition.num_clients + partition.classes_per_client - 1 must be at least the {len(present)} classes, "
            f"or images would be on no client; got {num_clients} + {classes_per_client} - 1"
        )
    if min_images < 1:
        raise ValueError(f"partition.min_images must be >= 1, got {min_images}")
    parts: list[list[Tensor]] = [[] for _ in range(num_clients)]
    for place, c in enumerate(circle):
        owners = [k for k in range(num_clients) if (place - k) % len(present) < classes_per_client]
        members = torch.nonzero(labels == c).flatten()
        spare = len(members) - min_images * len(owners)
        if spare < 0:
            raise ValueError(
                f"partition.min_images={min_images} asks for {min_images * len(owners)} images of class {int(c)} for its "
                f"{len(owners)} clients, and it has {len(members)}"
            )
        share = (sigma * torch.randn(len(owners), generator=rng, dtype=torch.float64)).softmax(0)
        members = members[torch.randperm(len(members), generator=rng)]
        pieces = members.split([min_images + extra for extra in _deal(share, spare)])
        for owner, piece in zip(owners, pieces, strict=True):
            parts[owner].append(piece)
    return _sorted([torch.cat(part) for part in parts])


def quantity_skew(labels: Tensor, seed: int, *, num_clients: int = 8, sigma: float = 1.0, min_images: int = 1) -> Partition:
    """Random images in log-normal amounts: some clients hold many, others few.

    Amounts are proportional to exp(sigma N(0, 1)).

    Args:
        labels: int64 [N], the class of each image, -1 where not known.
        seed: of the random draws.
        num_clients: clients.
        sigma: spread of the amounts; 0 gives equal ones.
        min_images: least number of images of a client.
    """
    _check_sigma(sigma)
    _check_clients(num_clients, len(labels))
    if not 1 <= min_images <= len(labels) // num_clients:
        raise ValueError(f"partition.min_images must be in [1, {len(labels) // num_clients}], got {min_images}")
    rng = generator(seed, "partition")
    share = (sigma * torch.randn(num_clients, generator=rng, dtype=torch.float64)).softmax(0)
    counts = [min_images + extra for extra in _deal(share, len(labels) - num_clients * min_images)]
    return _sorted(list(torch.randperm(len(labels), generator=rng).split(counts)))


def per_label(labels: Tensor, seed: int) -> Partition:
    """One client for each label of `partition_by`: a class, or the device that made the images.

    With `partition_by=owner` the data's own devices, with `partition_by=class` one person per device.
    """
    return [torch.nonzero(labels == label).flatten() for label in labels.unique()]


def _at_least(owner: Tensor, num_clients: int, min_images: int, rng: torch.Generator) -> Partition:
    sizes = owner.bincount(minlength=num_clients)
    while sizes.min() < min_images:
        poorest, richest = int(sizes.argmin()), int(sizes.argmax())
        images_of_richest = torch.nonzero(owner == richest).flatten()
        owner[images_of_richest[torch.randint(len(images_of_richest), (1,), generator=rng)]] = poorest
        sizes[poorest] += 1
        sizes[richest] -= 1
    return [torch.nonzero(owner == client).flatten() for client in range(num_clients)]


def _deal(share: Tensor, total: int) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to shares that add up to 1."""
    ends = (share.cumsum(0) * total).round().long()
    ends[-1] = total
    counts: list[int] = ends.diff(prepend=torch.zeros(1, dtype=torch.long)).tolist()
    return counts


def _log_gamma(shape: Tensor, rng: torch.Generator) -> Tensor:
    """The logarithms of draws from Gamma(shape), float64; their softmax is a draw from a Dirichlet distribution.

    A draw of a small shape is below the smallest double, so it is that of shape + 1 times U^(1/shape) (Marsaglia & Tsang 2000).
    """
    small = shape < 0.1
    draws = torch._standard_gamma(shape + small, generator=rng).log()
    if small.any():
        uniform = 1 - torch.rand(shape.shape, dtype=torch.float64, generator=rng)
        draws = draws + torch.where(small, uniform.log() / shape, 0)
    return draws


def _check_alpha(alpha: float) -> None:
    if not 1e-200 <= alpha < math.inf:
        raise ValueError(f"partition.alpha must be in [1e-200, inf), got {alpha}")


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma < math.inf:
        raise ValueError(f"partition.sigma must be >= 0 and finite, got {sigma}")


def _check_clients(num_clients: int, num_images: int) -> None:
    if not 1 <= num_clients <= num_images:
        raise ValueError(f"partition.num_clients must be in [1, {num_images}], the number of training images, got {num_clients}")


def _sorted(parts: Partition) -> Partition:
    return [part.sort().values for part in parts]
