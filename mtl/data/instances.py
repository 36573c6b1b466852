"""Instance transfer: images of other data, the source, are trained along, those most that are likest to a client's own.

Each client weighs the source's images by the ratio of densities in the embedding of a trunk that was trained before,

    w(x) = p_own(x) / p_source(x)

under which a mean over the source is one over images like its own (Shimodaira 2000, "Improving predictive inference under covariate shift
by weighting the log-likelihood function"). It is estimated by uLSIF (Kanamori, Hido & Sugiyama, JMLR 2009, "A least-squares approach to
direct importance estimation"):

    w(x) = sum_l max(0, a_l) k_l(x),      k_l(x) = exp(-|x - c_l|^2 / (2 s^2)),      a = (H + r I)^-1 h
    H = mean of k k^T over the source,    h = mean of k over the own images

with own images as centres c_l, and that width s and ridge r which err least where one image of each side is left out. Then as many source
images as are wanted are drawn with probability proportional to w (importance resampling, Rubin 1987), so that nothing that trains needs to
know of weights. Systematic drawing keeps each image's number within one of its share.

The source is public: all of it lies on every device. A client's weights come from its own images alone and stay with it; what others can
see is which of the source's subtasks it trains. Departures: widths are multiples of the median distance, as embeddings have no scale of
their own; embeddings are compared by direction, as cosine heads do.
"""

import dataclasses
import logging
from collections.abc import Callable

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
    """The data with source images beside each client's own, and the subtasks of which they are positives behind its own.

    images, subtasks: of the source; index: int64 [M], those of its images that may be drawn; embed: stored images to embeddings [N, h];
    ratio: images to draw for each of a client's own; disjoint: whether the images of each side are negatives of the other's subtasks,
    which else are unknown. A client trains those of the source's subtasks that it has drawn positives of. Nothing changes for validation
    and test. Raises ValueError where the source's images are of another shape, positives of nothing, or images of validation or test.
    """
    _check_source(data, images)
    index = index[(subtasks.targets & subtasks.known)[index].any(1)]
    if not len(index):
        raise ValueError("transfer.source must have training images that are positives of its subtasks, got none")
    hidden = {_bytes(image) for image in data.images[torch.cat([data.split.val, data.split.test])]}
    seen = sum(_bytes(image) in hidden for image in images[index])
    if seen:
        raise ValueError(
            f"transfer.source must hold no image of validation or test, and {seen} of its training images are of them"
        )
    source = F.normalize(embed(images[index]), dim=1)
    drawn = []
    for client, held in enumerate(data.clients):
        rng = generator(seed, "instances", client=client)
        weights = density_ratio(F.normalize(embed(data.images[held]), dim=1), source, rng)
        start = float(torch.rand((), generator=rng, dtype=torch.float64))
        drawn.append(index[draw_systematically(weights, max(round(ratio * len(held)), 1), start)])
    return _append(data, images, subtasks, drawn, disjoint=disjoint)


def _check_source(data: FederatedData, images: Tensor) -> None:
    if images.shape[1:] != data.images.shape[1:] or images.dtype != data.images.dtype:
        raise ValueError(
            f"transfer.source must have images of {tuple(data.images.shape[1:])} in {data.images.dtype}, "
            f"got {tuple(images.shape[1:])} in {images.dtype}"
        )


def _append(data: FederatedData, images: Tensor, subtasks: Subtasks, drawn: list[Tensor], *, disjoint: bool) -> FederatedData:
    """The data with the source images that each client has drawn behind its own. drawn: int64 indices of `images`, one list a client."""
    used, places = torch.cat(drawn).unique(return_inverse=True)
    chosen = (subtasks.targets & subtasks.known)[used].any(0)
    names = [f"{PREFIX}{name}" for name, is_chosen in zip(subtasks.names, chosen.tolist(), strict=True) if is_chosen]
    logger.info("%d images of the source with %d subtasks are trained along", len(used), len(names))
    parts = places.split([len(indices) for indices in drawn])
    clients = Ragged.of([torch.cat([held, len(data.images) + part]) for held, part in zip(data.clients, parts, strict=True)])
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


def density_ratio(own: Tensor, source: Tensor, rng: torch.Generator) -> Tensor:
    """own: [n, h]; source: [m, h]; returns w of the source's rows, float64 [m], above zero. rng: for the centres, and for the pairs of
    images that are left out. With a single image on a side none can be left out, and the width is the median distance.
    """
    own, others = (part.double()[torch.randperm(len(part), generator=rng)] for part in (own, source))
    centres = own[:CENTRES]
    typical = torch.cdist(others, centres).median().clamp_min(TINY)
    best = (torch.inf, 1.0, 1.0)
    if min(len(own), len(others)) > 1:
        for width in WIDTHS:
            ours, theirs = (_kernels(part, centres, width * typical) for part in (own, others))
            best = min(best, *((left_out_error(ours, theirs, ridge), width, ridge) for ridge in RIDGES))
    _, width, ridge = best
    ours, theirs = (_kernels(part, centres, width * typical) for part in (own, source.double()))
    gram = theirs.T @ theirs / len(theirs)
    strengths: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), ours.mean(0))
    return theirs @ strengths.clamp_min(0)


def left_out_error(ours: Tensor, theirs: Tensor, ridge: float) -> float:
    """ours: [n, b], k of the own images; theirs: [m, b], of the source's. The mean over i of w_i(source_i)^2 / 2 - w_i(own_i), w_i being
    fitted without own image i and source image i, for as many i as there are pairs; by the inverse of a matrix less one dyad.
    """
    n, m = len(ours), len(theirs)
    one, other = ours[: min(n, m)], theirs[: min(n, m)]
    matrix = theirs.T @ theirs / m + ridge * (m - 1) / m * torch.eye(theirs.shape[1])
    solved = torch.linalg.solve(matrix, torch.cat([(n * ours.mean(0) - one) / (n - 1), other]).T).T
    without_own, dyad = solved.split(len(one))
    correction = (other * without_own).sum(1) / (m - (other * dyad).sum(1))
    weights = ((m - 1) / m * (without_own + correction[:, None] * dyad)).clamp_min(0)
    return float(((weights * other).sum(1).square() / 2 - (weights * one).sum(1)).mean())


def draw_systematically(weights: Tensor, count: int, start: float) -> Tensor:
    """`count` places, sorted: with share s_i = count weights_i / sum, place i is among them floor(s_i) or ceil(s_i) times, and s_i times in
    the mean over a start that is uniform in [0, 1).
    """
    ends = weights.cumsum(0) * (count / weights.sum())
    return torch.searchsorted(ends, torch.arange(count, dtype=torch.float64) + start, right=True).clamp_max(len(weights) - 1)


def _kernels(rows: Tensor, centres: Tensor, width: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(rows, centres).square() / (2 * width.square()))


def _bytes(image: Tensor) -> bytes:
    return image.numpy().tobytes()
