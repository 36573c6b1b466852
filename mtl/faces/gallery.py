"""A gallery: embeddings of the photos of enrolled people, and the minimum cosine similarity to accept a match.

A face is compared with each person's template, the mean of the person's embeddings brought to length 1; `calibration` chooses the
threshold. People can be added and removed: the file contains the strangers that the threshold was chosen on, so that it can be chosen
again. If one person is enrolled under two names, neither can be recognised reliably; `doubles` finds such
pairs.
"""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mtl.base.files import write_arrays
from mtl.faces.calibration import Calibration, Share, Strangers, calibrate, make_templates

FORMAT = 2
UNKNOWN = -1


class GalleryError(ValueError):
    """A gallery cannot be read, made or changed as requested."""


@dataclass(frozen=True)
class Photos:
    """The enrolled photos of one person.

    Attributes:
        name: the person's name.
        files: the k files.
        embeddings: float [k, h], of length 1.
        digests: a hash of the pixels of each photo.
    """

    name: str
    files: tuple[str, ...]
    embeddings: Tensor
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """The enrolled people of a model.

    Attributes:
        names: the P people.
        embeddings: float [n, h], of length 1.
        person: int64 [n], index in `names` of each photo's person.
        files: the n photos.
        digests: a hash of the pixels of each photo.
        calibration: the threshold and its rates.
        strangers: faces of people who are not enrolled, None where there were none.
        model: fingerprint of the model that made the embeddings.
        run: run directory of that model.
    """

    names: tuple[str, ...]
    embeddings: Tensor
    person: Tensor
    files: tuple[str, ...]
    digests: tuple[str, ...]
    calibration: Calibration
    strangers: Strangers | None
    model: str
    run: str

    @property
    def templates(self) -> Tensor:
        """The people's templates, [P, h], of length 1."""
        return make_templates(self.embeddings, self.person, len(self.names))

    @property
    def people(self) -> list[Photos]:
        """The photos of each person."""
        rows = []
        for place, name in enumerate(self.names):
            photos = (self.person == place).nonzero().flatten().tolist()
            files, digests = (tuple(values[i] for i in photos) for values in (self.files, self.digests))
            rows.append(Photos(name, files, self.embeddings[photos], digests))
        return rows

    def match(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Identify faces.

        Args:
            embeddings: [m, h], of length 1.

        Returns:
            The most similar person, int64 [m], `UNKNOWN` below the threshold; and the cosine with that person's template, [m].
        """
        cosine, person = (embeddings @ self.templates.T).max(1)
        return torch.where(cosine >= self.calibration.threshold, person, UNKNOWN), cosine

    def add(self, people: Sequence[Photos], *, threshold: float | None = None) -> "Gallery":
        """Return a gallery with more people, calibrated again unless the user sets a threshold or has set one.

        Raises:
            GalleryError: a name is enrolled already.
        """
        enrolled = [photos.name for photos in people if photos.name in self.names]
        if enrolled:
            raise GalleryError(f"--add must name people who are not enrolled yet, got {', '.join(enrolled)}; --remove them first")
        return self._made([*self.people, *people], threshold)

    def remove(self, names: Sequence[str], *, threshold: float | None = None) -> "Gallery":
        """Return a gallery without some people, calibrated again unless the user sets a threshold or has set one.

        Raises:
            GalleryError: a name is not enrolled, or nobody would be left.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise GalleryError(f"--remove must name people of the gallery, {', '.join(self.names)}; got {', '.join(unknown)}")
        remaining = [photos for photos in self.people if photos.name not in names]
        if not remaining:
            raise GalleryError(f"--remove must leave somebody in the gallery, got all {len(self.names)}; delete the file instead")
        return self._made(remaining, threshold)

    def _made(self, people: Sequence[Photos], threshold: float | None) -> "Gallery":
        if threshold is None and self.calibration.user_set:
            threshold = self.calibration.threshold
        return make_gallery(people, strangers=self.strangers, threshold=threshold, model=self.model, run=self.run)

    def save(self, path: Path) -> None:
        """Write the gallery to an .npz file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shares = [_numbers(self.calibration.kept), _numbers(self.calibration.refused)]
        arrays: dict[str, Any] = {
            "format": np.array(FORMAT),
            "names": np.array(self.names),
            "embeddings": self.embeddings.numpy(),
            "person": self.person.numpy(),
            "files": np.array(self.files),
            "digests": np.array(self.digests),
            "threshold": np.array(self.calibration.threshold),
            "given": np.array(self.calibration.user_set),
            "shares": np.array(shares),
            "source": np.array(self.calibration.source),
            "model": np.array(self.model),
            "run": np.array(self.run),
        }
        if self.strangers is not None:
            arrays |= {
                "stranger_embeddings": self.strangers.embeddings.numpy(),
                "stranger_person": self.strangers.person.numpy(),
                "stranger_names": np.array(self.strangers.names),
                "stranger_own": np.array(self.strangers.from_user),
                "stranger_source": np.array(self.strangers.source),
            }
        write_arrays(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a gallery.

        Raises:
            GalleryError: the file does not exist, is damaged, or has another format.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                if int(file["format"]) != FORMAT:
                    raise GalleryError(f"gallery {path} must be of format {FORMAT}, got {int(file['format'])}; enrol again")
                kept, refused = map(_read_share, file["shares"].tolist())
                strangers = None
                if "stranger_person" in file:
                    strangers = Strangers(
                        embeddings=torch.from_numpy(file["stranger_embeddings"]),
                        person=torch.from_numpy(file["stranger_person"]),
                        names=tuple(file["stranger_names"].tolist()),
                        from_user=bool(file["stranger_own"]),
                        source=str(file["stranger_source"]),
                    )
                return cls(
                    names=tuple(file["names"].tolist()),
                    embeddings=torch.from_numpy(file["embeddings"]),
                    person=torch.from_numpy(file["person"]),
                    files=tuple(file["files"].tolist()),
                    digests=tuple(file["digests"].tolist()),
                    calibration=Calibration(float(file["threshold"]), bool(file["given"]), kept, refused, str(file["source"])),
                    strangers=strangers,
                    model=str(file["model"]),
                    run=str(file["run"]),
                )
        except GalleryError:
            raise
        except FileNotFoundError as error:
            raise GalleryError(f"gallery {path} does not exist; mtl enrol makes one") from error
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, TypeError, ValueError, AttributeError) as error:
            raise GalleryError(
                f"gallery {path} must be a file that mtl enrol wrote, got a damaged file or one of another kind ({error})"
            ) from error


def make_gallery(
    people: Sequence[Photos], *, strangers: Strangers | None = None, threshold: float | None, model: str, run: str
) -> Gallery:
    """Make a gallery of people's photos.

    Args:
        people: the photos of each person.
        strangers: faces of people who are not enrolled; those with the name of an enrolled person are left out of the calibration.
        threshold: minimum cosine similarity to accept a match, None to calibrate it.
        model: fingerprint of the model that made the embeddings.
        run: run directory of that model.

    Raises:
        GalleryError: two people have the same picture.
        ValueError: the threshold is not in (-1, 1).
    """
    _check_pictures(people)
    names = tuple(photos.name for photos in people)
    embeddings = torch.cat([photos.embeddings for photos in people])
    person = torch.arange(len(people)).repeat_interleave(torch.tensor([len(photos.files) for photos in people]))
    others = None if strangers is None else strangers.without(set(names))
    return Gallery(
        names=names,
        embeddings=embeddings,
        person=person,
        files=tuple(file for photos in people for file in photos.files),
        digests=tuple(digest for photos in people for digest in photos.digests),
        calibration=calibrate(embeddings, person, len(people), others, threshold=threshold),
        strangers=strangers,
        model=model,
        run=run,
    )


def _check_pictures(people: Sequence[Photos]) -> None:
    """Raise GalleryError where a picture is enrolled under two names."""
    seen: dict[str, tuple[str, str]] = {}
    for photos in people:
        for file, digest in zip(photos.files, photos.digests, strict=True):
            name, first = seen.setdefault(digest, (photos.name, file))
            if name != photos.name:
                raise GalleryError(
                    f"one picture must not be enrolled under two names, got {first} of {name} and {file} of {photos.name}: "
                    "neither person could be recognised"
                )


def _numbers(share: Share | None) -> list[float]:
    return [np.nan] * 4 if share is None else [share.value, share.faces, share.people, share.num]


def _read_share(numbers: Sequence[float]) -> Share | None:
    value, faces, people, num = numbers
    return None if value != value else Share(value, int(faces), int(people), int(num))
