"""What a map of centres is trained on: X. Zhou, D. Wang and P. Kraehenbuehl, "Objects as Points", 2019 (CenterNet).

For a face whose centre is at p in units of cells, in cell floor(p), of w x h cells, with Y the splat of all faces and P the map:

    heatmap   -1/N sum (1 - P)^2 log P          where a face is centred      (the positive part)
              -1/N sum (1 - Y)^4 P^2 log(1 - P) elsewhere                    (the negative part)
    offset     1/N sum |o - (p - floor(p))|     at the centres
    size       1/N sum |s - log(w, h)|          at the centres

    Y = max over faces of exp(-d^2 / 2 sigma^2), sigma = (2 r + 1) / 6

N is the number of faces in the batch; r is the largest shift of the corners that leaves an intersection over union of .7 (H. Law and
J. Deng, "CornerNet", ECCV 2018), by the roots of their erratum. Departures: the size is regressed by its logarithm, so that an error weighs
the same on a small and a large face; Y is not cut off at r; the heatmap is one pair loss, so that its two parts can be logged and weighed
like those of any subtask.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.losses.pairs import PairLosses

TERMS = ("heatmap", "offset", "size")
MIN_OVERLAP = 0.7


@dataclass(frozen=True)
class CentreTargets:
    """What the maps of a batch of scenes are trained on.

    Attributes:
        heat: [B, h, w], the splats, 1 at centres.
        cell: int64 [B, M], the cell of each centre, counted row by row.
        offset: [B, M, 2], (x, y) of the centre in its cell, in cells.
        log_size: [B, M, 2], logarithm of width and height in cells.
        valid: bool [B, M], False for padding.
    """

    heat: Tensor
    cell: Tensor
    offset: Tensor
    log_size: Tensor
    valid: Tensor


def splat_radius(size: Tensor, overlap: float = MIN_OVERLAP) -> Tensor:
    """The largest shift r of all corners that leaves an intersection over union of `overlap`, [...], for boxes of size [..., 2]."""
    total, area = size.sum(-1), size.prod(-1)
    # Both corners the same way; both inwards; both outwards.
    shifted = (total - (total.square() - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inside = (total - (total.square() - 4 * area * (1 - overlap)).sqrt()) / 4
    outside = ((overlap**2 * total.square() + 4 * overlap * (1 - overlap) * area).sqrt() - overlap * total) / (4 * overlap)
    return torch.minimum(torch.minimum(shifted, inside), outside)


def centre_targets(boxes: Tensor, valid: Tensor, map_size: tuple[int, int], stride: int) -> CentreTargets:
    """The targets of a batch of boxes.

    Args:
        boxes: [B, M, 4] in pixels.
        valid: bool [B, M], False for padding.
        map_size: (h, w) in cells.
        stride: pixels to a cell.
    """
    height, width = map_size
    corners = boxes / stride
    centre = ((corners[..., :2] + corners[..., 2:]) / 2).clamp_min(0)
    # The middle of a box that reaches beyond the last cell may be there too.
    cell = torch.minimum(centre.floor(), boxes.new_tensor([width - 1, height - 1]))
    size = (corners[..., 2:] - corners[..., :2]).clamp_min(1e-3)
    sigma = (2 * splat_radius(size) + 1) / 6
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    # The exponential of a sum is the product of a row and a column: fewer exponentials than one for every cell.
    spread = 2 * sigma.square()[..., None]
    column = torch.exp(-(x - cell[..., :1]).square() / spread) * valid[..., None]
    row = torch.exp(-(y - cell[..., 1:]).square() / spread)
    splat = row[..., :, None] * column[..., None, :]
    heat = splat.amax(1) if splat.shape[1] else boxes.new_zeros(len(boxes), height, width)
    place = (cell[..., 1] * width + cell[..., 0]).long()
    return CentreTargets(heat, torch.where(valid, place, 0), centre - cell, size.log(), valid)


def centre_losses(maps: Tensor, targets: CentreTargets) -> PairLosses:
    """Positive and negative parts, [3] each, of the losses in `TERMS`.

    Args:
        maps: [B, 5, h, w], heat logit, offset (x, y) and log size (w, h).
        targets: of the same scenes.
    """
    maps = maps.float()
    logits, heat = maps[:, 0], targets.heat
    faces = targets.valid.sum().clamp_min(1)
    probability = logits.sigmoid()
    positive = ((1 - probability).square() * F.softplus(-logits))[heat == 1].sum()
    negative = ((1 - heat).pow(4) * probability.square() * F.softplus(logits)).sum()
    at = targets.cell[:, None].expand(-1, 4, -1)
    predicted = maps[:, 1:].flatten(2).gather(2, at).transpose(1, 2)
    expected = torch.cat([targets.offset, targets.log_size], 2)
    errors = torch.where(targets.valid[..., None], (predicted - expected).abs(), 0).sum((0, 1))
    zero = torch.zeros_like(negative)
    return PairLosses(
        positive=torch.stack([positive, errors[:2].sum(), errors[2:].sum()]) / faces,
        negative=torch.stack([negative, zero, zero]) / faces,
    )
