"""Pictures of a scene, drawn from photographs of faces: backgrounds, and the faces pasted onto them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.base.seeding import random_uniform, split_key
from mtl.data.warp import Size

OVAL = (0.86, 0.94)  # half the width and height of a face in its AT&T picture, in units of the picture's
TRIES, DECOYS, SHAPES, OCTAVES = 20, 2, 6, (3, 6, 12, 24, 48)


@dataclass(frozen=True)
class SceneStyle:
    """Size of a scene in pixels, the most faces in it, least and greatest height of a face in pixels, and largest rotation in radians."""

    size: Size
    max_faces: int
    face_height: tuple[float, float]
    rotation: float


def draw_scenes(key: Tensor, photographs: Tensor, style: SceneStyle) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """key: int32 [n, 2]; photographs: [P, 1, 112, 92]; returns images uint8 [n, 1, H, W], boxes [n, M, 4], which count [n, M], and the
    photograph of each [n, M].
    """
    draws = _Draws(key)
    canvas = _background(draws, style.size)
    slots = style.max_faces + DECOYS
    wanted = (draws(1) * (style.max_faces + 1)).long()
    centre, height, angle, boxes, valid = _place(draws, style, slots)
    chosen = (draws(slots) * len(photographs)).long()
    is_face = torch.arange(slots) < style.max_faces
    valid = valid & (~is_face | (torch.arange(slots) < wanted))
    for slot in range(slots):
        pictures = photographs[chosen[:, slot]]
        if slot >= style.max_faces:
            pictures = _shuffle(pictures, draws(16))
        level = pictures.mean((1, 2, 3), keepdim=True)
        gain, offset = draws(1, 1, 1, low=0.6, high=1.3), draws(1, 1, 1, low=-0.2, high=0.2)
        pictures = level + (pictures - level) * gain + offset
        whole = draws(1, 1) < 0.4
        at = valid[:, slot].nonzero().flatten()
        canvas[at] = _paste(canvas[at], pictures[at], centre[at, slot], height[at, slot], angle[at, slot], whole[at])
    noise = draws.noise(style.size) * draws(1, 1, 1, high=0.06)
    images = ((canvas + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    faces = slice(style.max_faces)
    return images, boxes[:, faces], valid[:, faces], chosen[:, faces]


class _Draws:
    """Uniform numbers of n scenes, each from a hash of its scene's key; no call repeats another's."""

    def __init__(self, key: Tensor) -> None:
        self.key, self.used = key, 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float [n, *shape] in [low, high)."""
        own = split_key(self.key, torch.tensor(self.used, dtype=torch.int32))
        self.used += 1
        number = math.prod(shape)
        uniform = random_uniform(own[:, None], torch.arange(number, dtype=torch.int32))
        return (low + (high - low) * uniform).view(len(self.key), *shape)

    def noise(self, size: Size) -> Tensor:
        """Float [n, 1, *size] in [-1, 1): a generator of torch's for each scene, many times faster than a hash of each pixel."""
        seeds = split_key(self.key, torch.tensor(self.used, dtype=torch.int32))[:, 0].tolist()
        self.used += 1
        return torch.stack([torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]) * 2 - 1


def _background(draws: _Draws, size: Size) -> Tensor:
    """[n, 1, H, W]: noise of five octaves under shapes of even or striped grey."""
    canvas = torch.zeros(1)
    for cells in OCTAVES:
        octave = F.interpolate(draws(1, cells, cells, low=-1, high=1), size=size, mode="bilinear")
        canvas = canvas + octave * draws(1, 1, 1).square()
    spread = canvas.std((1, 2, 3), keepdim=True)
    canvas = draws(1, 1, 1, low=0.2, high=0.8) + canvas / spread * draws(1, 1, 1, low=0.02, high=0.2)
    height, width = size
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    for _ in range(SHAPES):
        centre = draws(2, 1, 1) * torch.tensor([width, height])[:, None, None]
        angle, side = draws(1, 1, high=math.pi), draws(2, 1, 1, low=0.03, high=0.3) * min(size)
        cos, sin = angle.cos(), angle.sin()
        across = (x - centre[:, 0]) * cos + (y - centre[:, 1]) * sin
        down = (y - centre[:, 1]) * cos - (x - centre[:, 0]) * sin
        u, v = across / side[:, 0], down / side[:, 1]
        radius = torch.where(draws(1, 1) < 0.5, torch.maximum(u.abs(), v.abs()), (u.square() + v.square()).sqrt())
        stripes = torch.sin(across * draws(1, 1, low=0.2, high=1.5)) * draws(1, 1, high=0.25) * (draws(1, 1) < 0.5)
        cover = ((1 - radius) * side.amin(1)).clamp(0, 1) * draws(1, 1, low=0.4, high=1) * (draws(1, 1) < 0.6)
        canvas = torch.lerp(canvas, (draws(1, 1) + stripes)[:, None], cover[:, None])
    return canvas


def _place(draws: _Draws, style: SceneStyle, slots: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Centres [n, S, 2], heights and angles [n, S], boxes [n, S, 4] and whether there was room [n, S]: the first of some random places
    that lies in the picture and touches none before.
    """
    low, high = (math.log(side) for side in style.face_height)
    extent = torch.tensor([style.size[1], style.size[0]], dtype=torch.float32)
    places: list[tuple[Tensor, ...]] = []
    taken: list[Tensor] = []
    for _ in range(slots):
        height = draws(TRIES, low=low, high=high).exp()
        angle = draws(TRIES, low=-style.rotation, high=style.rotation)
        half_height, half_width = height / 2, height / 2 * (OVAL[0] * 92) / (OVAL[1] * 112)
        half = torch.stack([_reach(half_width, half_height, angle), _reach(half_height, half_width, angle)], -1)
        centre = half + draws(TRIES, 2) * (extent - 2 * half)
        boxes = torch.cat([centre - half, centre + half], -1)
        free = (2 * half <= extent).all(-1)
        for before in taken:
            free &= ((boxes[..., 2:] <= before[:, None, :2]) | (boxes[..., :2] >= before[:, None, 2:])).any(-1)
        first = free.int().argmax(1)
        rows = torch.arange(len(first))
        found = free.any(1)
        places.append((centre[rows, first], height[rows, first], angle[rows, first], boxes[rows, first], found))
        taken.append(boxes[rows, first].where(found[:, None], -1.0))
    centre, height, angle, boxes, found = (torch.stack(each, 1) for each in zip(*places, strict=True))
    return centre, height, angle, boxes, found


def _reach(along: Tensor, across: Tensor, angle: Tensor) -> Tensor:
    """How far an ellipse turned by `angle` reaches in the direction of its half axis `along`."""
    return ((along * angle.cos()).square() + (across * angle.sin()).square()).sqrt()


def _shuffle(pictures: Tensor, draw: Tensor) -> Tensor:
    """The sixteen tiles of each picture in the order of `draw`, [n, 16]."""
    tiles = pictures.unflatten(2, (4, 28)).unflatten(4, (4, 23)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    tiles = tiles.gather(1, draw.argsort(1)[:, :, None, None, None].expand_as(tiles))
    shuffled: Tensor = tiles.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return shuffled


def _paste(canvas: Tensor, pictures: Tensor, centre: Tensor, height: Tensor, angle: Tensor, whole: Tensor) -> Tensor:
    """Blend each picture into its canvas, its oval `height` pixels high. whole: bool [n, 1, 1], with its surroundings."""
    rows, columns = canvas.shape[-2:]
    y, x = torch.arange(rows)[:, None] + 0.5, torch.arange(columns) + 0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    right, below = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    half = (height / (2 * OVAL[1]))[:, None, None]
    u, v = (right * cos + below * sin) / (half * 92 / 112), (below * cos - right * sin) / half
    grid, shrunk = torch.stack([u, v], -1), torch.zeros_like(canvas)
    # A face much smaller than its photograph is sampled from one that has been averaged, or it would be ragged.
    level = (56 / half.flatten()).log2().floor().clamp(0, 2).long()
    for power in level.unique().tolist():
        at = (level == power).nonzero().flatten()
        averaged = F.avg_pool2d(pictures[at], 2**power) if power else pictures[at]
        shrunk[at] = F.grid_sample(averaged, grid[at], padding_mode="border", align_corners=False)
    oval = ((u / OVAL[0]).square() + (v / OVAL[1]).square()).sqrt()
    radius = torch.where(whole, torch.maximum(u.abs(), v.abs()), oval)
    cover = ((1.02 - radius) * 8).clamp(0, 1)
    return torch.lerp(canvas, shrunk, cover[:, None])
