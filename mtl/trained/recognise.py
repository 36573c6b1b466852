"""Find the people in photos, by a gallery that `mtl enrol` wrote."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from hydra_zen import instantiate
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mtl.base.files import atomic_write, write_json
from mtl.faces.finder import FaceFinder, Faces
from mtl.faces.gallery import UNKNOWN, Gallery, GalleryError
from mtl.faces.photos import Photo, UnreadablePhoto, draw_faces, find_photos, read_photo
from mtl.run.load import load_run

PADDING = 0.25  # of a gallery photo's height and width, repeated around it: a face may fill the picture


@dataclass(frozen=True)
class Recogniser:
    """The model of a run of mode=detection, ready to find and embed faces.

    Attributes:
        run: the run directory.
        finder: finds faces and embeds them.
        confidence: score from which a face counts as found.
    """

    run: Path
    finder: FaceFinder
    confidence: float

    @classmethod
    def load(cls, run_dir: Path) -> Self:
        """Load the model of a run.

        Raises:
            ValueError: as `load_run`; or the run has no detector.
        """
        run = load_run(run_dir)
        model, options = run.model.to(memory_format=torch.channels_last), instantiate(run.config.detection)
        if model.detector is None:
            raise ValueError(
                f"--model must be a run that finds faces (mtl train +experiment=detect), got {run_dir} of another mode"
            )
        finder = FaceFinder(
            model.trunk,
            model.detector,
            instantiate(run.config.normalise),
            crop_shape=run.image_shape,
            margin=options.margin,
            mirror=run.config.mirror,
        )
        return cls(run_dir, finder, options.confidence)

    def check(self, gallery: Gallery, file: Path) -> None:
        """Check that a gallery was made with this model.

        Args:
            gallery: the gallery.
            file: where it was read from.

        Raises:
            GalleryError: it was made with another.
        """
        if self.finder.fingerprint() != gallery.model:
            raise GalleryError(f"gallery {file} must be of the model of {self.run}, and it is of another; enrol again")

    def read(self, path: Path, max_side: int) -> Photo:
        """Read a photo, reduced to `max_side` pixels, with the channels that the model takes."""
        return read_photo(path, channels=self.finder.channels, max_side=max_side)

    def faces(self, photo: Photo) -> tuple[Faces, torch.Tensor]:
        """Find the faces of a photo, in pixels of its image, and embed them, [n, h]."""
        with torch.inference_mode():
            (faces,) = self.finder.find(photo.image[None], confidence=self.confidence, pyramid=True)
            return faces, self.finder.embed(self.finder.crops(photo.image, faces.boxes))

    def portrait(self, photo: Photo) -> torch.Tensor | None:
        """Embed the largest face of a gallery photo, [1, h]; None where there is none."""
        height, width = photo.image.shape[1:]
        down, across = round(PADDING * height), round(PADDING * width)
        padded = F.pad(photo.image[None], (across, across, down, down), mode="replicate")[0]
        faces, embeddings = self.faces(Photo(photo.path, padded, photo.scale))
        if not len(faces):
            return None
        sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
        return embeddings[[int(sides.prod(1).argmax())]]


@dataclass(frozen=True)
class Named:
    """A face of a photo.

    Attributes:
        box: (left, top, right, bottom) in pixels of the upright photo.
        score: of the detector, in 0..1.
        name: None for unknown.
        cosine: largest similarity with the gallery.
    """

    box: tuple[float, float, float, float]
    score: float
    name: str | None
    cosine: float

    @property
    def label(self) -> str:
        """Name and cosine, as written on the picture."""
        return f"{self.name or 'unknown'} {self.cosine:.2f}"


def name_faces(model: Recogniser, gallery: Gallery, photo: Photo) -> list[Named]:
    """Find and name the faces of a photo, from left to right."""
    faces, embeddings = model.faces(photo)
    if not len(faces):
        return []
    person, cosine = gallery.match(embeddings)
    boxes = (faces.boxes * photo.scale).tolist()
    rows = zip(boxes, faces.scores.tolist(), person.tolist(), cosine.tolist(), strict=True)
    named = [
        Named((box[0], box[1], box[2], box[3]), score, None if who == UNKNOWN else gallery.names[who], likeness)
        for box, score, who, likeness in rows
    ]
    return sorted(named, key=lambda face: face.box)


def recognise(
    names: Sequence[str], gallery_file: Path, output: Path, *, run: Path | None = None, max_side: int = 640
) -> dict[str, Any]:
    """Find and name the faces of photos; write each with frames, and `recognised.json`, into `output`.

    A photo that cannot be read is named and left out.

    Args:
        names: photos, folders of them, or patterns.
        gallery_file: what `mtl enrol` wrote.
        output: folder of the pictures.
        run: None for the run that the gallery was made with.
        max_side: longest side, in pixels, that a photo is reduced to.

    Returns:
        The content of `recognised.json`.

    Raises:
        ValueError: the gallery is of another model, there is no photo, or none that can be read.
    """
    paths = find_photos(names)
    gallery = Gallery.load(gallery_file)
    model = Recogniser.load(run or Path(gallery.run))
    model.check(gallery, gallery_file)
    console = Console(stderr=True)
    pictures = _unused_names(paths)
    overwritten = {(output / picture).resolve() for picture in pictures.values()} & {path.resolve() for path in paths}
    if overwritten:
        raise ValueError(f"--output must be a folder where no photo is overwritten, got {output} with {min(overwritten).name}")
    output.mkdir(parents=True, exist_ok=True)
    table = Table("Photo", "Face", "Who", "Cosine", "Score", "Left, top, right, bottom")
    photos, skipped = [], []
    for path in progress(paths, "recognising", console):
        try:
            faces = name_faces(model, gallery, model.read(path, max_side))
            picture = draw_faces(path, [f.box for f in faces], [f.label for f in faces], [f.name is not None for f in faces])
        except UnreadablePhoto as error:
            warn(console, f"{error}; it is left out")
            skipped.append({"photo": str(path), "reason": str(error)})
            continue
        with atomic_write(output / pictures[path]) as file:
            picture.save(file, format="PNG")
        for number, face in enumerate(faces, start=1):
            where = ", ".join(f"{side:.0f}" for side in face.box)
            table.add_row(
                escape(str(path)), str(number), escape(face.name or "unknown"), f"{face.cosine:.3f}", f"{face.score:.2f}", where
            )
        if not faces:
            table.add_row(escape(str(path)), "0", "no face found", "", "", "")
        listed = [{"box": list(f.box), "score": f.score, "name": f.name, "cosine": f.cosine} for f in faces]
        photos.append({"photo": str(path), "picture": pictures[path], "faces": listed})
    if not photos:
        raise ValueError(f"PHOTO must name a photo that can be read, got none among {len(paths)}")
    content = {
        "gallery": str(gallery_file),
        "model": gallery.model,
        "run": str(model.run),
        "threshold": gallery.calibration.threshold,
        "calibration": gallery.calibration.plain(),
        "photos": photos,
        "left_out": skipped,
    }
    write_json(output / "recognised.json", content)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return content


def _unused_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Name the picture of each photo, so that photos of the same name in several folders get different ones."""
    used: set[str] = set()
    names = {}
    for path in paths:
        number, name = 1, f"{path.stem}.png"
        while name in used:
            number += 1
            name = f"{path.stem}-{number}.png"
        used.add(name)
        names[path] = name
    return names


def warn(console: Console, message: str) -> None:
    """Print a warning."""
    console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


def progress(items: Sequence[Any], what: str, console: Console) -> Iterator[Any]:
    """Yield the items, with a progress bar in a terminal."""
    yield from track(items, what, console=console, disable=not console.is_terminal)
