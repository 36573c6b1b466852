"""Pictures with faces in them, and the boxes of the faces.

`orl_scenes` composes such pictures from the AT&T faces, so that detection needs no download: each face is turned, scaled, brightened and
blended by a soft oval, or with its surroundings, into a background of noise, shapes and stripes. Decoys, faces with their parts shuffled,
are also pasted, so that neither skin nor a soft edge gives a face away. Test scenes show photographs that no training scene shows.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.base.seeding import client_keys, derive_seed, generator, random_uniform, split_key
from mtl.base.types import ImageData
from mtl.data.faces import orl
from mtl.data.images import check_integers, no_attributes
from mtl.data.warp import Size, crop_boxes

OVAL = (0.86, 0.94)  # half the width and height of a face in its AT&T picture, in units of the picture's
TRIES, DECOYS, SHAPES, OCTAVES, CHUNK = 20, 2, 6, (3, 6, 12, 24, 48), 16
TRAIN, VAL, TEST = range(3)


@dataclass(frozen=True)
class SceneSet:
    """Scenes of one size, with the boxes of their faces.

    Attributes:
        images: uint8 [N, c, H, W].
        boxes: float [N, M, 4], (left, top, right, bottom) in pixels, the first counts[i] of scene i count.
        counts: int64 [N].
        identity: int64 [N, M], -1 where not known.
        class_names: one name per identity.
        split: int8 [N], 0 train, 1 validation, 2 test.
        source: where they come from.
    """

    name: str
    images: Tensor
    boxes: Tensor
    counts: Tensor
    identity: Tensor
    class_names: tuple[str, ...]
    split: Tensor
    source: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def valid(self) -> Tensor:
        """Which boxes count, bool [N, M], False for padding."""
        return torch.arange(self.boxes.shape[1], device=self.boxes.device) < self.counts[:, None]

    @property
    def size(self) -> Size:
        """The size of every scene: (height, width)."""
        return self.images.shape[2], self.images.shape[3]

    def part(self, which: int) -> Tensor:
        """Indices of the scenes of one part of the split."""
        return torch.nonzero(self.split == which).flatten()

    def to(self, device: torch.device) -> Self:
        """A copy on `device`."""
        names = ("images", "boxes", "counts", "identity", "split")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in names})


def scene_faces(scenes: SceneSet, *, image_size: Sequence[int] = (56, 46), margin: float = 0.15) -> ImageData:
    """The faces of the scenes in `scenes`, each cut out at its true box.

    What the subtasks train on, next to the detection in the same scenes. images: uint8 [F, c, *image_size]; official_split: that of the
    scenes.

    Args:
        scenes: the scenes.
        image_size: (height, width) of a face.
        margin: how much longer than the box a face is cut out; see `crop_placement`.
    """
    check_integers("data.image_size", image_size, {"height": 1, "width": 1})
    scene, place = scenes.valid.nonzero(as_tuple=True)
    height, width = image_size
    crops = [
        crop_boxes(scenes.images[at].float(), scenes.boxes[at, slot], (height, width), margin=margin).round().to(torch.uint8)
        for at, slot in zip(scene.split(CHUNK), place.split(CHUNK), strict=True)
    ]
    return ImageData(
        name=f"faces of {scenes.name}",
        images=torch.cat(crops) if crops else scenes.images.new_zeros(0, scenes.images.shape[1], height, width),
        classes=scenes.identity[scene, place],
        class_names=scenes.class_names,
        attributes=no_attributes(len(scene)),
        attribute_names=(),
        source=scenes.source,
        official_split=scenes.split[scene],
    )


def orl_scenes(
    root: str = "data",
    *,
    image_size: Sequence[int] = (160, 160),
    scenes: Sequence[int] = (600, 0, 200),
    photographs: Sequence[int] = (5, 0, 5),
    people: int = 40,
    max_faces: int = 4,
    face_height: Sequence[float] = (26.0, 104.0),
    rotation: float = 12.0,
    seed: int = 0,
) -> SceneSet:
    """Grey scenes composed of the AT&T faces.

    uint8 [N, 1, *image_size]. Scene i of a part depends on (seed, part, i) alone. A box is the smallest around the oval of a face.

    Args:
        root: folder of data sets.
        image_size: (height, width) of a scene.
        scenes: scenes for training, validation and test.
        photographs: photographs of each person for training, validation and test, which are disjoint and drawn by the seed.
        people: number of the forty people that appear, the first ones.
        max_faces: a scene has from none to this many faces, each number as likely, where there is room.
        face_height: least and greatest height of a face in pixels, log-uniform.
        rotation: turn faces by up to this many degrees.
        seed: seed of the scenes.

    Raises:
        DataNotFound: where `orl` does.
        ValueError: for an option out of range.
    """
    check_integers("scenes.image_size", image_size, {"height": 16, "width": 16})
    check_integers("scenes.scenes", scenes, {"train": 1, "val": 0, "test": 1})
    check_integers("scenes.photographs", photographs, {"train": 1, "val": 0, "test": 1})
    if sum(photographs) > 10 or (scenes[VAL] and not photographs[VAL]):
        raise ValueError(
            f"scenes.photographs must share out the 10 of each person and leave some for every part that has scenes, got "
            f"{list(photographs)} for {list(scenes)} scenes"
        )
    if not 2 <= people <= 40:
        raise ValueError(f"scenes.people must be in [2, 40], got {people}")
    if max_faces < 1:
        raise ValueError(f"scenes.max_faces must be >= 1, got {max_faces}")
    low, high = face_height
    if not 8 <= low <= high <= min(image_size):
        raise ValueError(
            f"scenes.face_height must be (low, high), 8 <= low <= high <= the shorter side of the scenes, {min(image_size)}, "
            f"got {list(face_height)}"
        )
    if not 0 <= rotation <= 90:
        raise ValueError(f"scenes.rotation must be in [0, 90] degrees, got {rotation}")
    height, width = image_size
    style = _Style((height, width), max_faces, (float(low), float(high)), math.radians(rotation))
    return _orl_scenes(root, tuple(scenes), tuple(photographs), people, style, seed)


@dataclass(frozen=True)
class _Style:
    size: Size
    max_faces: int
    face_height: tuple[float, float]
    rotation: float


@functools.lru_cache(maxsize=1)  # a run reads them twice: as scenes, and as the faces cut out of them
def _orl_scenes(
    root: str, scenes: tuple[int, ...], photographs: tuple[int, ...], people: int, style: _Style, seed: int
) -> SceneSet:
    faces = orl(root, image_size=None)
    order = torch.rand(40, 10, generator=generator(seed, "scenes/photographs")).argsort(1) + torch.arange(0, 400, 10)[:, None]
    parts, first = [], 0
    for part, (number, count) in enumerate(zip(scenes, photographs, strict=True)):
        pictures, first = order[:people, first : first + count].flatten(), first + count
        key = client_keys(derive_seed(seed, "scenes", part), "scene", 0, range(number))
        for some in key.split(CHUNK) if number else ():
            parts.append((*_draw(some, faces.images[pictures].float() / 255, style), pictures))
    images, boxes, valid, chosen, photographs_of = zip(*parts, strict=True)
    present = torch.cat(valid)
    identity = torch.cat([faces.classes[pictures[pick]] for pick, pictures in zip(chosen, photographs_of, strict=True)])
    # Slots without room for a face are empty: those that count come first.
    front = (~present).int().argsort(dim=1, stable=True)
    return SceneSet(
        name="orl_scenes",
        images=torch.cat(images),
        boxes=torch.cat(boxes).where(present[..., None], 0.0).gather(1, front[..., None].expand(-1, -1, 4)),
        counts=present.sum(1),
        identity=identity.where(present, -1).gather(1, front),
        class_names=faces.class_names[:people],
        split=torch.arange(3, dtype=torch.int8).repeat_interleave(torch.tensor(scenes)),
        source=f"composed of {faces.source}, seed {seed}",
    )


class _Draws:
    """Uniform numbers of n scenes, each a hash of its scene's key; no call repeats another's."""

    def __init__(self, key: Tensor) -> None:
        self.key, self.used = key, 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float [n, *shape] in [low, high)."""
        key = split_key(self.key, torch.tensor(self.used, dtype=torch.int32))
        self.used += 1
        number = math.prod(shape)
        uniform = random_uniform(key[:, None], torch.arange(number, dtype=torch.int32))
        return (low + (high - low) * uniform).view(len(self.key), *shape)

    def noise(self, size: Size) -> Tensor:
        """Float [n, 1, *size] in [-1, 1): a generator of torch's for each scene, many times faster than a hash of each pixel."""
        seeds = split_key(self.key, torch.tensor(self.used, dtype=torch.int32))[:, 0].tolist()
        self.used += 1
        return torch.stack([torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]) * 2 - 1


def _draw(key: Tensor, photographs: Tensor, style: _Style) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw n scenes: images uint8 [n, 1, H, W], boxes [n, M, 4], which count [n, M], and the photograph of each [n, M].

    Args:
        key: int32 [n, 2].
        photographs: [P, 1, 112, 92].
        style: what scenes look like.
    """
    draws = _Draws(key)
    canvas = _background(draws, style.size)
    slots = style.max_faces + DECOYS
    num_faces = (draws(1) * (style.max_faces + 1)).long()
    centre, height, angle, boxes, valid = _place(draws, style, slots)
    chosen = (draws(slots) * len(photographs)).long()
    is_face = torch.arange(slots) < style.max_faces
    valid = valid & (~is_face | (torch.arange(slots) < num_faces))
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


def _background(draws: _Draws, size: Size) -> Tensor:
    """Noise of five octaves under shapes of even or striped grey, [n, 1, H, W]."""
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


def _place(draws: _Draws, style: _Style, slots: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Place S faces in each scene, at the first of some random places that is in the picture and touches no other face.

    Centres [n, S, 2], heights and angles [n, S], boxes [n, S, 4] and whether there was room [n, S].
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
        has_room = free.any(1)
        places.append((centre[rows, first], height[rows, first], angle[rows, first], boxes[rows, first], has_room))
        taken.append(boxes[rows, first].where(has_room[:, None], -1.0))
    centre, height, angle, boxes, has_room = (torch.stack(each, 1) for each in zip(*places, strict=True))
    return centre, height, angle, boxes, has_room


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
    """Blend each picture into its canvas, its oval `height` pixels high; where `whole`, bool [n, 1, 1], with its surroundings."""
    rows, columns = canvas.shape[-2:]
    y, x = torch.arange(rows)[:, None] + 0.5, torch.arange(columns) + 0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    right, below = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    half = (height / (2 * OVAL[1]))[:, None, None]
    u, v = (right * cos + below * sin) / (half * 92 / 112), (below * cos - right * sin) / half
    grid, shrunk = torch.stack([u, v], -1), torch.zeros_like(canvas)
    # A face much smaller than its photograph is sampled from an averaged photograph, or it would alias.
    level = (56 / half.flatten()).log2().floor().clamp(0, 2).long()
    for power in level.unique().tolist():
        at = (level == power).nonzero().flatten()
        averaged = F.avg_pool2d(pictures[at], 2**power) if power else pictures[at]
        shrunk[at] = F.grid_sample(averaged, grid[at], padding_mode="border", align_corners=False)
    oval = ((u / OVAL[0]).square() + (v / OVAL[1]).square()).sqrt()
    radius = torch.where(whole, torch.maximum(u.abs(), v.abs()), oval)
    cover = ((1.02 - radius) * 8).clamp(0, 1)
    return torch.lerp(canvas, shrunk, cover[:, None])
