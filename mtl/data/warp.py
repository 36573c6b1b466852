"""Geometry and histograms of pictures, batched and on any device: crop, align, equalise.

A point is (x, y) in pixels from the top left corner of a picture, so that the centre of its first pixel is (.5, .5). A placement
[B, 2, 3] takes a point of the output to the point of the input that is seen there.

Alignment by points: S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 13(4), 1991.
In the plane his estimate has a closed form: with points as complex numbers, centred, y ~ a x + t has a = sum(conj(x) y) / sum |x|^2,
whose modulus is the scale and whose argument is the angle; the result is never a reflection, so no determinant needs to be checked.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]

# Eyes, tip of the nose and corners of the mouth in a face of 112 x 112, left to right as seen: the template of ArcFace (Deng et al. 2019).
FIVE_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def warp(images: Tensor, placement: Tensor, size: Size, *, max_samples: int = 8) -> Tensor:
    """Sample pictures bilinearly at placements, [B, c, *size]; beyond the border its pixels repeat.

    Where a placement shrinks, each output pixel is the mean of a grid of samples, as many each way as the strongest shrinking in the
    batch asks for, at most `max_samples`.

    Args:
        images: float [B, c, H, W].
        placement: [B, 2, 3].
        size: (height, width) of the output.
        max_samples: samples each way.
    """
    if not len(images):
        return images.new_zeros(0, images.shape[1], *size)
    by = 1
    if max_samples > 1:
        shrinking = float(torch.linalg.vector_norm(placement[:, :, :2], dim=1).max())
        by = min(max(math.ceil(shrinking - 1e-3), 1), max_samples)
    height, width = size[0] * by, size[1] * by
    y, x = ((torch.arange(n, dtype=images.dtype, device=images.device) + 0.5) / by for n in (height, width))
    points = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(height, width)], -1
    )
    sources = torch.einsum("bij,hwj->bhwi", placement.to(images.dtype), points)
    extent = torch.tensor([images.shape[3], images.shape[2]], dtype=images.dtype, device=images.device)
    output = F.grid_sample(images, 2 * sources / extent - 1, padding_mode="border", align_corners=False)
    return F.avg_pool2d(output, by) if by > 1 else output


def crop_placement(boxes: Tensor, size: Size, *, margin: float = 0.0) -> Tensor:
    """Placements, [B, 2, 3], that show each box whole, centred and in its true proportions.

    Args:
        boxes: [B, 4] as (left, top, right, bottom).
        size: (height, width) of the output.
        margin: how much longer than the box the output is, as a fraction.
    """
    height, width = size
    sides = boxes[:, 2:] - boxes[:, :2]
    scale = torch.maximum(sides[:, 0] / width, sides[:, 1] / height) * (1 + margin)
    corner = (boxes[:, 2:] + boxes[:, :2]) / 2 - scale[:, None] * boxes.new_tensor([width / 2, height / 2])
    return torch.cat([scale[:, None, None] * torch.eye(2).to(boxes), corner[:, :, None]], 2)


def crop_boxes(images: Tensor, boxes: Tensor, size: Size, *, margin: float = 0.0) -> Tensor:
    """A picture of each box, [B, c, *size]; see `crop_placement`.

    Args:
        images: float [B, c, H, W].
        boxes: [B, 4] as (left, top, right, bottom).
        size: (height, width) of the output.
        margin: how much longer than the box the output is, as a fraction.
    """
    return warp(images, crop_placement(boxes, size, margin=margin), size)


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """The similarity, [B, 2, 3], that takes source to target with the least squared error; both [B, n, 2], n >= 2.

    Where all source points are one, it is the shift to the mean of the targets.
    """
    x, y = (torch.view_as_complex(points.contiguous()) for points in (source, target))
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    centred = x - x_mean
    spread = centred.abs().square().sum(1)
    a = torch.where(spread > 0, (centred.conj() * (y - y_mean)).sum(1) / spread.clamp_min(torch.finfo(spread.dtype).tiny), 1)
    shift = y_mean[:, 0] - a * x_mean[:, 0]
    rows = [torch.stack([a.real, -a.imag, shift.real], -1), torch.stack([a.imag, a.real, shift.imag], -1)]
    return torch.stack(rows, 1)


def align(images: Tensor, points: Tensor, size: Size) -> Tensor:
    """Turn, scale and move faces so that their five points are as near to the template as a similarity brings them.

    The template is scaled to the height of the output and centred across it.

    Args:
        images: float [B, c, H, W].
        points: [B, 5, 2], in the order of `FIVE_POINTS`.
        size: (height, width) of the output.

    Returns:
        [B, c, *size].
    """
    height, width = size
    template = points.new_tensor(FIVE_POINTS) * (height / 112)
    template = template + points.new_tensor([(width - height) / 2, 0.0])
    return warp(images, similarity(template.expand_as(points), points), size)


def equalise(images: Tensor, levels: int = 256) -> Tensor:
    """Equalise the histogram of each channel of each picture: a pixel becomes the share of the others that are darker.

    With F the number of pixels up to a level, a level becomes (F - F_min) / (n - F_min), F_min that of the darkest level present
    (Gonzalez & Woods, "Digital Image Processing", as OpenCV's equalizeHist). A picture of one level does not change.

    Args:
        images: float [B, c, H, W] in 0..1.
        levels: steps in which they are read.

    Returns:
        the same shape, in 0..1.
    """
    flat = images.flatten(2).flatten(0, 1)
    level = (flat * (levels - 1)).round().clamp(0, levels - 1).long()
    counts = torch.zeros(len(flat), levels, device=images.device).scatter_add_(
        1, level, torch.ones_like(level, dtype=torch.float32)
    )
    up_to = counts.cumsum(1)
    darkest = counts.gather(1, level.amin(1, keepdim=True))
    spread = flat.shape[1] - darkest
    mapped = ((up_to - darkest) / spread.clamp_min(1)).gather(1, level).to(images.dtype)
    return torch.where(spread > 0, mapped, flat).view_as(images)
