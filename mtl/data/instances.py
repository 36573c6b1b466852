"""Instance transfer: clients also train on images of other data, the source, sampling those most similar to their own more often.

Each client weighs the source's images by the ratio of densities in the embedding of a trunk that was trained before,

    w(x) = p_client(x) / p_source(x)

under which a mean over the source is one over images like its own (Shimodaira 2000, "Improving predictive inference under covariate shift
by weighting the log-likelihood function"). It is estimated by uLSIF (Kanamori, Hido & Sugiyama, JMLR 2009, "A least-squares approach to
direct importance estimation"):

    w(x) = sum_l max(0, a_l) k_l(x),      k_l(x) = exp(-|x - c_l|^2 / (2 s^2)),      a = (H + r I)^-1 h
    H = mean of k k^T over the source,    h = mean of k over the client's images

with images of the client as centres c_l, and the width s and ridge r with the least error when one image of each side is left out. Then as
many source images as required are drawn with probability proportional to w (importance resampling, Rubin 1987), so that training needs no
weights. Systematic drawing keeps each image's number within one of its share.

The source is public: all of it is on every device. A client's weights come from its images alone and stay with it; what others can see is
which of the source's subtasks it trains. Departures: widths are multiples of the median distance, as embeddings have no scale of their own;
embeddings are compared by direction, as cosine heads do.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.base.seeding import generator
from mtl.data.federated_data import FederatedData, sum_by_client
from mtl.data.ragged import Ragged
from mtl.data.subtasks import Subtasks

logger = logging.getLogger(__name__)
PREFIX = "source:"  # of the names of the source's subtasks
CENTRES = 100  # at most
WIDTHS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0)  # times the median distance
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)
TINY = 1e-12


def add_instances(
    data: FederatedData,
    images: Tensor,
    subtasks: Subtasks,
    index: Tensor,
    *,
    embed: Callable[[Tensor], Tensor],
    ratio: float,
    disjoint: bool,
    seed: int,
) -> FederatedData:
    """Add source images to each client's images, and their subtasks after the client's subtasks.

    A client trains those of the source's subtasks that it has drawn positives of. Nothing changes for validation and test.

    Args:
        data: the data of the clients.
        images: of the source.
        subtasks: of the source.
        index: int64 [M], those of its images that may be drawn.
        embed: stored images to embeddings [N, h].
        ratio: images to draw for each of a client's own.
        disjoint: whether the images of each side are negatives of the other's subtasks; otherwise these labels are unknown.
        seed: of the random draws.

    Raises:
        ValueError: where the source's images are of another shape, positives of nothing, or images of validation or test.
    """
    index = index[(subtasks.targets & subtasks.known)[index].any(1)]
    _check_source(data, images, index)
    drawn = [index[places] for places in _draw_for_clients(data, images[index], embed=embed, ratio=ratio, seed=seed)]
    used, places = torch.cat(drawn).unique(return_inverse=True)
    chosen = (subtasks.targets & subtasks.known)[used].any(0)
    names = [f"{PREFIX}{name}" for name, is_chosen in zip(subtasks.names, chosen.tolist(), strict=True) if is_chosen]
    logger.info("%d images of the source with %d subtasks are added to the clients", len(used), len(names))

    parts = places.split([len(part) for part in drawn])
    clients = Ragged.of(
        [torch.cat([client_images, len(data.images) + part]) for client_images, part in zip(data.clients, parts, strict=True)]
    )
    targets = torch.block_diag(data.targets, subtasks.targets[used][:, chosen]).bool()
    known = torch.block_diag(data.known, subtasks.known[used][:, chosen]).bool()
    if disjoint:
        known[: len(data.images), data.num_tasks :] = True
        known[len(data.images) :, : data.num_tasks] = True
    positives, negatives = (sum_by_client(clients, labels & known) for labels in (targets, ~targets))
    return dataclasses.replace(
        data,
        tasks=(*data.tasks, *names),
        images=torch.cat([data.images, images[used]]),
        targets=targets,
        known=known,
        identity=torch.cat([data.identity, torch.full((len(used),), -1)]),
        clients=clients,
        assignment=torch.cat([data.assignment, positives[:, data.num_tasks :] > 0], 1),
        positives=positives,
        negatives=negatives,
        num_source=len(names),
    )


def _check_source(data: FederatedData, images: Tensor, index: Tensor) -> None:
    if images.shape[1:] != data.images.shape[1:] or images.dtype != data.images.dtype:
        raise ValueError(
            f"transfer.source must have images of {tuple(data.images.shape[1:])} in {data.images.dtype}, "
            f"got {tuple(images.shape[1:])} in {images.dtype}"
        )
    if not len(index):
        raise ValueError("transfer.source must have training images that are positives of its subtasks, got none")
    hidden = {_bytes(image) for image in data.images[torch.cat([data.split.val, data.split.test])]}
    num_hidden = sum(_bytes(image) in hidden for image in images[index])
    if num_hidden:
        raise ValueError(
            f"transfer.source must hold no image of validation or test, and {num_hidden} of its training images are of them"
        )


def _draw_for_clients(
    data: FederatedData, source: Tensor, *, embed: Callable[[Tensor], Tensor], ratio: float, seed: int
) -> Iterator[Tensor]:
    """Places in the source's images, for each client."""
    source_embeddings = F.normalize(embed(source), dim=1)
    for client, client_images in enumerate(data.clients):
        rng = generator(seed, "instances", client=client)
        weights = density_ratio(F.normalize(embed(data.images[client_images]), dim=1), source_embeddings, rng)
        start = float(torch.rand((), generator=rng, dtype=torch.float64))
        yield draw_systematically(weights, max(round(ratio * len(client_images)), 1), start)


def density_ratio(client: Tensor, source: Tensor, rng: torch.Generator) -> Tensor:
    """The ratio of densities w of the source's rows, float64 [m], above zero.

    With a single image on a side none can be left out, and the width is the median distance.

    Args:
        client: embeddings of the client's images, [n, h].
        source: embeddings of the source's images, [m, h].
        rng: for the centres, and for the pairs of images that are left out.
    """
    client, foreign = (part.double()[torch.randperm(len(part), generator=rng)] for part in (client, source))
    centres = client[:CENTRES]
    typical = torch.cdist(foreign, centres).median().clamp_min(TINY)
    best = (torch.inf, 1.0, 1.0)
    if min(len(client), len(foreign)) > 1:
        for width in WIDTHS:
            client_kernels, source_kernels = (_kernels(part, centres, width * typical) for part in (client, foreign))
            best = min(best, *((left_out_error(client_kernels, source_kernels, ridge), width, ridge) for ridge in RIDGES))
    _, width, ridge = best
    client_kernels, source_kernels = (_kernels(part, centres, width * typical) for part in (client, source.double()))
    gram = source_kernels.T @ source_kernels / len(source_kernels)
    strengths: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), client_kernels.mean(0))
    return source_kernels @ strengths.clamp_min(0)


def left_out_error(client_kernels: Tensor, source_kernels: Tensor, ridge: float) -> float:
    """The error of a fit, with one image of each side left out.

    The mean over i of w_i(source_i)^2 / 2 - w_i(client_i), w_i being fitted without client image i and source image i, for as many i as
    there are pairs; by the inverse of a matrix less one dyad.

    Args:
        client_kernels: [n, b], k of the client's images.
        source_kernels: [m, b], k of the source's images.
        ridge: r.
    """
    n, m = len(client_kernels), len(source_kernels)
    client_rows, source_rows = client_kernels[: min(n, m)], source_kernels[: min(n, m)]
    matrix = source_kernels.T @ source_kernels / m + ridge * (m - 1) / m * torch.eye(source_kernels.shape[1])
    solved = torch.linalg.solve(matrix, torch.cat([(n * client_kernels.mean(0) - client_rows) / (n - 1), source_rows]).T).T
    without_client, dyad = solved.split(len(client_rows))
    correction = (source_rows * without_client).sum(1) / (m - (source_rows * dyad).sum(1))
    weights = ((m - 1) / m * (without_client + correction[:, None] * dyad)).clamp_min(0)
    return float(((weights * source_rows).sum(1).square() / 2 - (weights * client_rows).sum(1)).mean())


def draw_systematically(weights: Tensor, count: int, start: float) -> Tensor:
    """Draw `count` places by weight, sorted, each as often as its share to within one.

    With the share s_i = count weights_i / sum, place i is drawn floor(s_i) or ceil(s_i) times, and s_i times in the mean over a uniform
    start.

    Args:
        weights: float64 [m], >= 0.
        count: places to draw.
        start: in [0, 1).

    Returns:
        int64 [count].
    """
    ends = weights.cumsum(0) * (count / weights.sum())
    return torch.searchsorted(ends, torch.arange(count, dtype=torch.float64) + start, right=True).clamp_max(len(weights) - 1)


def _kernels(rows: Tensor, centres: Tensor, width: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(rows, centres).square() / (2 * width.square()))


def _bytes(image: Tensor) -> bytes:
    return image.numpy().tobytes()
