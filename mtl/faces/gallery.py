"""The people a model knows: embeddings of their photos, and from which cosine on a face is one of theirs.

A face is compared with each person's template, the mean of the person's embeddings brought to length 1; `calibration` says from which
cosine on it is that person. People are added and removed; the strangers that the threshold was chosen on stay in the file, so that it can
be chosen again. One person under two names would make the two as near to each other as to themselves: `find_doubles` finds such pairs.
"""

import io
import itertools
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
from mtl.faces.calibration import Calibration, Share, Strangers, calibrate, left_out, make_templates

FORMAT = 2
UNKNOWN = -1
DOUBLE = 0.375  # of the photos of two people


class GalleryError(ValueError):
    """A gallery cannot be used."""


@dataclass(frozen=True)
class Photos:
    """What is enrolled of one person. files: k; embeddings: float [k, h], of length 1; digests: k, of the pixels of each photo."""

    name: str
    files: tuple[str, ...]
    embeddings: Tensor
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """names: P people; embeddings: float [n, h], of length 1; person: int64 [n]; files, digests: n, where the faces are from, and of the
    pixels there; strangers: None where none were at hand; model: the fingerprint of what embedded them; run: the run directory that holds
    it.
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
        """[P, h], of length 1."""
        return make_templates(self.embeddings, self.person, len(self.names))

    @property
    def people(self) -> list[Photos]:
        """The photos of each."""
        rows = []
        for place, name in enumerate(self.names):
            own = (self.person == place).nonzero().flatten().tolist()
            files, digests = (tuple(each[i] for i in own) for each in (self.files, self.digests))
            rows.append(Photos(name, files, self.embeddings[own], digests))
        return rows

    def match(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """embeddings: [m, h]; returns who each is, int64 [m], `UNKNOWN` below the threshold, and the cosine with the likest, [m]."""
        cosine, person = (embeddings @ self.templates.T).max(1)
        return torch.where(cosine >= self.calibration.threshold, person, UNKNOWN), cosine

    def add(self, people: Sequence[Photos], *, threshold: float | None = None) -> "Gallery":
        """With more people, calibrated again, unless a threshold is or was given. Raises GalleryError for a name that is enrolled."""
        known = [photos.name for photos in people if photos.name in self.names]
        if known:
            raise GalleryError(f"--add must name people who are not enrolled yet, got {', '.join(known)}; --remove them first")
        return self._made([*self.people, *people], threshold)

    def remove(self, names: Sequence[str], *, threshold: float | None = None) -> "Gallery":
        """Without some people, calibrated again, unless a threshold is or was given. Raises GalleryError for others, and for all."""
        lacking = [name for name in names if name not in self.names]
        if lacking:
            raise GalleryError(f"--remove must name people of the gallery, {', '.join(self.names)}; got {', '.join(lacking)}")
        rest = [photos for photos in self.people if photos.name not in names]
        if not rest:
            raise GalleryError(f"--remove must leave somebody in the gallery, got all {len(self.names)}; delete the file instead")
        return self._made(rest, threshold)

    def _made(self, people: Sequence[Photos], threshold: float | None) -> "Gallery":
        if threshold is None and self.calibration.given:
            threshold = self.calibration.threshold
        return make_gallery(people, strangers=self.strangers, threshold=threshold, model=self.model, run=self.run)

    def save(self, path: Path) -> None:
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
            "given": np.array(self.calibration.given),
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
                "stranger_own": np.array(self.strangers.own),
                "stranger_source": np.array(self.strangers.source),
            }
        write_arrays(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises GalleryError where `path` is not a whole gallery."""
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
                        own=bool(file["stranger_own"]),
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
                f"gallery {path} must be a file that mtl enrol wrote, and it is damaged or another ({error})"
            ) from error


def make_gallery(
    people: Sequence[Photos], *, strangers: Strangers | None = None, threshold: float | None, model: str, run: str
) -> Gallery:
    """strangers: who of them is enrolled by name does not count as one; threshold: None to calibrate it. Raises GalleryError where two
    people share a picture, and ValueError where the threshold is not a cosine.
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


def find_doubles(gallery: Gallery) -> list[str]:
    """Pairs of people who may be one person under two names, as sentences that name the likest photo of each, the surest first.

    They may be where at least `DOUBLE` of their photos, left out of their own template, are at least as near to the other's. Of a person
    with one photo, that must be as near as the least of the other's own, or where both have one, reach the threshold.
    """
    own, _ = left_out(gallery.embeddings, gallery.person, len(gallery.names))
    cosines = gallery.embeddings @ gallery.templates.T
    people = [(gallery.person == place).nonzero().flatten() for place in range(len(gallery.names))]
    found = []
    for a, b in itertools.combinations(range(len(people)), 2):
        of_a, of_b = people[a], people[b]
        nearer = torch.cat(
            [_nearer(own[of_a], cosines[of_a, b], own[of_b], gallery), _nearer(own[of_b], cosines[of_b, a], own[of_a], gallery)]
        )
        share = float(nearer.double().mean())
        if share < DOUBLE:
            continue
        between = gallery.embeddings[of_a] @ gallery.embeddings[of_b].T
        row, column = divmod(int(between.argmax()), between.shape[1])
        first, second = gallery.files[int(of_a[row])], gallery.files[int(of_b[column])]
        found.append(
            (
                share,
                f"{gallery.names[a]} and {gallery.names[b]} may be one person under two names: {int(nearer.sum())} of their "
                f"{len(nearer)} photos are as near to the other, {first} and {second} most (cosine {float(between.max()):.3f})",
            )
        )
    return [text for _, text in sorted(found, reverse=True)]


def find_enrolled_strangers(gallery: Gallery) -> list[str]:
    """Strangers of three faces or more of which half are as near to a person enrolled as that one's own photos are (median): who may be
    enrolled under another name, which stands behind theirs.
    """
    if gallery.strangers is None:
        return []
    strangers = gallery.strangers.without(set(gallery.names))
    own, _ = left_out(gallery.embeddings, gallery.person, len(gallery.names))
    level = torch.stack([own[gallery.person == place].median() for place in range(len(gallery.names))])
    near = strangers.embeddings @ gallery.templates.T >= level
    found = []
    for place, name in enumerate(strangers.names):
        theirs = near[strangers.person == place].double()
        if len(theirs) >= 3 and float(theirs.mean(0).max()) >= 0.5:
            found.append(f"{name} (as {gallery.names[int(theirs.mean(0).argmax())]})")
    return found


def _nearer(own: Tensor, cosine: Tensor, theirs: Tensor, gallery: Gallery) -> Tensor:
    """Which photos of a person are at least as near to another; own, theirs: cosines left out, NaN for a single photo."""
    if len(own) > 1:
        return cosine >= own
    return cosine >= (theirs.min() if len(theirs) > 1 else gallery.calibration.threshold)


def _check_pictures(people: Sequence[Photos]) -> None:
    """No picture under two names."""
    seen: dict[str, tuple[str, str]] = {}
    for photos in people:
        for file, digest in zip(photos.files, photos.digests, strict=True):
            name, first = seen.setdefault(digest, (photos.name, file))
            if name != photos.name:
                raise GalleryError(
                    f"one picture must not be enrolled under two names, got {first} of {name} and {file} of {photos.name}: the two "
                    "could not be told apart, and nobody would be known"
                )


def _numbers(share: Share | None) -> list[float]:
    return [np.nan] * 4 if share is None else [share.value, share.faces, share.people, share.num]


def _read_share(numbers: Sequence[float]) -> Share | None:
    value, faces, people, num = numbers
    return None if value != value else Share(value, int(faces), int(people), int(num))
