"""Pictures with faces in them, and the boxes of the faces.

`orl_scenes` composes such pictures from the AT&T faces (see `scene_drawing`), so that detection needs no download. Decoys keep skin and
soft edges from giving a face away. Test scenes show photographs that no training scene shows.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mtl.base.seeding import client_keys, derive_seed, generator
from mtl.base.types import ImageData
from mtl.data.faces import orl
from mtl.data.images import check_integers, no_attributes
from mtl.data.scene_drawing import SceneStyle, draw_scenes
from mtl.data.warp import Size, crop_boxes

CHUNK = 16
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


def orl_scenes(  # noqa: PLR0913 a member of the group scenes
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
    style = SceneStyle((height, width), max_faces, (float(low), float(high)), math.radians(rotation))
    return _orl_scenes(root, tuple(scenes), tuple(photographs), people, style, seed)


@functools.lru_cache(maxsize=1)  # a run reads them twice: as scenes, and as the faces cut out of them
def _orl_scenes(
    root: str, scenes: tuple[int, ...], photographs: tuple[int, ...], people: int, style: SceneStyle, seed: int
) -> SceneSet:
    faces = orl(root, image_size=None)
    order = torch.rand(40, 10, generator=generator(seed, "scenes/photographs")).argsort(1) + torch.arange(0, 400, 10)[:, None]
    parts, first = [], 0
    for part, (number, count) in enumerate(zip(scenes, photographs, strict=True)):
        pictures, first = order[:people, first : first + count].flatten(), first + count
        key = client_keys(derive_seed(seed, "scenes", part), "scene", 0, range(number))
        for some in key.split(CHUNK) if number else ():
            parts.append((*draw_scenes(some, faces.images[pictures].float() / 255, style), pictures))
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
