"""What a device does with a run that finds faces: enrol people and say who is in a photo, with onnxruntime, numpy and Pillow alone.

    mtl export RUN --out faces.onnx        # a run of mode=detection: faces.onnx and faces_detector.onnx
    python experiments/deploy/find_faces.py enrol faces.onnx --gallery PEOPLE --output gallery.npz --threshold .5
    python experiments/deploy/find_faces.py recognise faces.onnx photo.jpg ... --gallery gallery.npz

PEOPLE is a folder with a folder of photos for each person. A gallery that `mtl enrol` made of the same run, with its calibrated threshold,
serves as well. The steps are those of `mtl.faces.finder` and `mtl.data.warp`, with the numbers of the files' metadata.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from recognise import as_pixels, open_file, open_picture  # type: ignore[import-not-found]  # beside this file


class FaceFiles:
    """The recogniser, and the detector beside it."""

    def __init__(self, path: Path) -> None:
        self.recogniser, facts = open_file(path)
        self.detector, scene = open_file(path.with_name(f"{path.stem}_detector{path.suffix}"))
        if facts["finder"] is None or facts["finder"] != scene["finder"]:
            raise SystemExit(f"{path} and the detector beside it must be of one run of mode=detection; export it again")
        self.finder, self.shape, self.rule = facts["finder"], facts["image_shape"], facts["picture"]
        self.height, self.width = scene["image_shape"][1:]

    def read(self, path: Path, padding: float = 0.0) -> Any:
        """Pixels [c, h, w] of a photo that is reduced to what the detector takes, with its border repeated by `padding` of each side."""
        picture = open_picture(path, self.shape[0], self.rule)
        scale = max((1 + 2 * padding) * picture.height / self.height, (1 + 2 * padding) * picture.width / self.width, 1.0)
        if scale > 1:
            size = max(math.floor(picture.width / scale), 1), max(math.floor(picture.height / scale), 1)
            picture = picture.resize(size, Image.Resampling.BOX)
        pixels = as_pixels(picture)[0]
        down, across = round(padding * pixels.shape[1]), round(padding * pixels.shape[2])
        return np.pad(pixels, ((0, 0), (down, down), (across, across)), mode="edge")

    def find(self, pixels: Any) -> tuple[Any, Any]:
        """Boxes [n, 4] as (left, top, right, bottom) in the pixels of a photo, and scores [n], the surest first."""
        height, width = pixels.shape[1:]
        scale = min(self.height / height, self.width / width)
        size = min(max(round(width * scale), 1), self.width), min(max(round(height * scale), 1), self.height)
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).resize(size, Image.Resampling.BOX)
        fitted = as_pixels(picture)[0]
        borders = ((0, 0), (0, self.height - size[1]), (0, self.width - size[0]))
        scene = np.pad(fitted, borders, mode="edge")[None]
        outputs = self.detector.run(None, {"images": scene})
        names = [output.name for output in self.detector.get_outputs()]
        found = []
        for name, maps in zip(names, outputs, strict=True):
            boxes, scores = self._decode(maps[0])
            found.append((boxes * int(name.removeprefix("maps_")), scores))
        boxes, scores = (np.concatenate(each) for each in zip(*found, strict=True))
        back = np.array([width / size[0], height / size[1]] * 2)
        boxes = np.clip(boxes * back, 0, [width, height] * 2)
        sure = np.flatnonzero((scores >= self.finder["confidence"]) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1))
        return self._distinct(boxes[sure], scores[sure])

    def _decode(self, maps: Any) -> tuple[Any, Any]:
        """maps: [5, h, w]; the highest cells that no neighbour exceeds, as boxes in the pixels of what was looked at."""
        heat = 1 / (1 + np.exp(-maps[0].astype(np.float64)))
        rows, columns = heat.shape
        padded = np.pad(heat, 1, constant_values=-np.inf)
        around = np.max([padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], 0)
        peaks = np.where(around == heat, heat, 0).ravel()
        cells = np.argsort(-peaks, kind="stable")[: self.finder["top"]]
        values = maps[1:].reshape(4, -1)[:, cells].T
        corner = np.stack([cells % columns, cells // columns], 1)
        stride = self.finder["stride"]
        centre = (corner + values[:, :2]) * stride
        half = np.exp(np.minimum(values[:, 2:], 8.0)) * (stride / 2)
        return np.concatenate([centre - half, centre + half], 1), peaks[cells]

    def _distinct(self, boxes: Any, scores: Any) -> tuple[Any, Any]:
        """Without boxes that a surer one overlaps, then without those that lie in a surer one or around it."""
        order = np.argsort(-scores, kind="stable")
        for limit, relative in ((self.finder["overlap"], False), (self.finder["within"], True)):
            kept: list[int] = []
            for place in order:
                if all(_overlap(boxes[place], boxes[other], smaller=relative) <= limit for other in kept):
                    kept.append(int(place))
            order = np.array(kept, dtype=int)
        return boxes[order], scores[order]

    def embed(self, pixels: Any, boxes: Any) -> Any:
        """Embeddings [n, h] of length 1 of the faces in a photo's boxes."""
        crops = [_crop(pixels, box, self.shape[1:], self.finder["margin"], self.finder["max_samples"]) for box in boxes]
        images = np.stack([np.rint(crop).astype(np.uint8) for crop in crops])
        return self.recogniser.run(["embeddings"], {"images": images})[0]


def _overlap(one: Any, other: Any, *, smaller: bool) -> float:
    """What two boxes share, of what both cover together or of the smaller."""
    shared = np.prod(np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0))
    areas = [np.prod(box[2:] - box[:2]) for box in (one, other)]
    return float(shared / (min(areas) if smaller else sum(areas) - shared))


def _crop(pixels: Any, box: Any, size: tuple[int, int], margin: float, max_samples: int) -> Any:
    """[c, *size] of a box, in its proportions, `margin` longer: bilinear, the mean of a grid of samples where it shrinks."""
    height, width = size
    sides = box[2:] - box[:2]
    scale = max(sides[0] / width, sides[1] / height) * (1 + margin)
    left, top = (box[2:] + box[:2]) / 2 - scale * np.array([width / 2, height / 2])
    by = min(max(math.ceil(scale - 1e-3), 1), max_samples)
    columns, rows = ((np.arange(n * by) + 0.5) / by * scale + start - 0.5 for n, start in ((width, left), (height, top)))
    x, y = np.clip(columns, 0, pixels.shape[2] - 1), np.clip(rows, 0, pixels.shape[1] - 1)
    x0, y0 = (np.floor(values).astype(int) for values in (x, y))
    x1, y1 = np.minimum(x0 + 1, pixels.shape[2] - 1), np.minimum(y0 + 1, pixels.shape[1] - 1)
    right, lower = x - x0, (y - y0)[:, None]
    upper_row = pixels[:, y0][:, :, x0] * (1 - right) + pixels[:, y0][:, :, x1] * right
    lower_row = pixels[:, y1][:, :, x0] * (1 - right) + pixels[:, y1][:, :, x1] * right
    samples = upper_row * (1 - lower) + lower_row * lower
    return samples.reshape(len(pixels), height, by, width, by).mean((2, 4))


def enrol(files: FaceFiles, folder: Path, threshold: float) -> dict[str, Any]:
    """A gallery: the largest face of each photo of each person."""
    names, embeddings, person, photos = [], [], [], []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(place.iterdir()):
            pixels = files.read(path, files.finder["padding"])
            boxes, _ = files.find(pixels)
            if not len(boxes):
                print(f"no face found in {path}; it is left out")
                continue
            largest = (boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()
            if place.name not in names:
                names.append(place.name)
            embeddings.append(files.embed(pixels, boxes[[largest]])[0])
            person.append(names.index(place.name))
            photos.append(str(path.relative_to(folder)))
    if not names:
        raise SystemExit(f"{folder} must hold a folder of photos for each person, and no face was found in it")
    return {
        **{"names": np.array(names), "embeddings": np.stack(embeddings), "person": np.array(person)},
        **{"files": np.array(photos), "threshold": np.array(threshold), "model": np.array(files.finder["model"])},
    }


def recognise(files: FaceFiles, photo: Path, gallery: Any) -> list[tuple[str | None, float, list[float]]]:
    """Name or None, cosine, and box in the photo's own pixels, of each face from left to right."""
    upright = open_picture(photo, files.shape[0], files.rule).size
    pixels = files.read(photo)
    boxes, _ = files.find(pixels)
    if not len(boxes):
        return []
    sums = np.zeros((len(gallery["names"]), gallery["embeddings"].shape[1]))
    np.add.at(sums, gallery["person"], gallery["embeddings"])
    templates = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    cosines = files.embed(pixels, boxes) @ templates.T
    back = np.array([upright[0] / pixels.shape[2], upright[1] / pixels.shape[1]] * 2)
    faces = []
    for box, own in zip(boxes * back, cosines, strict=True):
        who = int(own.argmax())
        name = str(gallery["names"][who]) if own[who] >= gallery["threshold"] else None
        faces.append((name, float(own[who]), box.tolist()))
    return sorted(faces, key=lambda face: face[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    enrolling = commands.add_parser("enrol")
    enrolling.add_argument("file", type=Path, help="from mtl export, with its detector beside it")
    enrolling.add_argument("--gallery", type=Path, required=True, help="a folder with a folder of photos for each person")
    enrolling.add_argument("--output", type=Path, default=Path("gallery.npz"))
    enrolling.add_argument(
        "--threshold", type=float, required=True, help="minimum cosine to accept a match; mtl enrol calibrates one"
    )
    recognising = commands.add_parser("recognise")
    recognising.add_argument("file", type=Path, help="from mtl export, with its detector beside it")
    recognising.add_argument("photos", type=Path, nargs="+")
    recognising.add_argument("--gallery", type=Path, required=True, help="from this script or from mtl enrol")
    options = parser.parse_args()
    files = FaceFiles(options.file)
    if options.command == "enrol":
        gallery = enrol(files, options.gallery, options.threshold)
        with options.output.open("wb") as file:
            np.savez(file, **gallery)
        print(f"{options.output}: {len(gallery['names'])} people, {len(gallery['files'])} photos")
        return
    with np.load(options.gallery, allow_pickle=False) as file:
        gallery = {name: file[name] for name in ("names", "embeddings", "person", "threshold", "model")}
    if str(gallery["model"]) != files.finder["model"]:
        raise SystemExit(f"{options.gallery} must be of the model of {options.file}, and it is of another; enrol again")
    for photo in options.photos:
        faces = recognise(files, photo, gallery)
        for name, cosine, box in faces:
            print(f"{photo}: {name or 'unknown'} {cosine:.3f} at {', '.join(f'{side:.0f}' for side in box)}")
        if not faces:
            print(f"{photo}: no face found")


if __name__ == "__main__":
    main()
