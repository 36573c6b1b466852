"""The people a model knows: embeddings of their photos, and from which cosine on a face is one of theirs.

A face is compared with each person's template, the mean of the person's embeddings brought to length 1. The threshold comes from the
gallery by leaving one photo out at a time: its cosine with the template of its own person without it should pass, and its highest cosine
with anyone else, which is what it would get were its person not enrolled, should not. Taken is the threshold at which the mean of the two
rates is highest; where a range of thresholds ties, the middle of the widest.
"""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.files import write_arrays

FORMAT = 1
UNKNOWN = -1


class GalleryError(ValueError):
    """A gallery cannot be used."""


@dataclass(frozen=True)
class Calibration:
    """threshold: the least cosine at which a face gets a name; kept: share of left-out photos that pass it with their own person;
    refused: share that it refuses where their person is left out; None where the gallery cannot say.
    """

    threshold: float
    kept: float | None
    refused: float | None

    def __str__(self) -> str:
        shares = [
            f"{100 * share:.1f} % of photos left out {what}"
            for share, what in ((self.kept, "are known again"), (self.refused, "are unknown once their person is left out"))
            if share is not None
        ]
        return f"a face is somebody from cosine {self.threshold:.3f} on" + (f": {', '.join(shares)}" if shares else "")


@dataclass(frozen=True)
class Gallery:
    """names: P people; embeddings: float [n, h], of length 1; person: int64 [n]; files: n, where the faces are from; model: the
    fingerprint of what embedded them; run: the run directory that holds it.
    """

    names: tuple[str, ...]
    embeddings: Tensor
    person: Tensor
    files: tuple[str, ...]
    calibration: Calibration
    model: str
    run: str

    @property
    def templates(self) -> Tensor:
        """[P, h], of length 1."""
        return make_templates(self.embeddings, self.person, len(self.names))

    def match(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """embeddings: [m, h]; returns who each is, int64 [m], `UNKNOWN` below the threshold, and the cosine with the likest, [m]."""
        cosine, person = (embeddings @ self.templates.T).max(1)
        return torch.where(cosine >= self.calibration.threshold, person, UNKNOWN), cosine

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shares = [np.nan if share is None else share for share in (self.calibration.kept, self.calibration.refused)]
        write_arrays(
            path,
            format=np.array(FORMAT),
            names=np.array(self.names),
            embeddings=self.embeddings.numpy(),
            person=self.person.numpy(),
            files=np.array(self.files),
            calibration=np.array([self.calibration.threshold, *shares]),
            model=np.array(self.model),
            run=np.array(self.run),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises GalleryError where `path` is not a whole gallery."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                if int(file["format"]) != FORMAT:
                    raise GalleryError(f"gallery {path} must be of format {FORMAT}, got {int(file['format'])}; enrol again")
                threshold, *shares = file["calibration"].tolist()
                return cls(
                    names=tuple(file["names"].tolist()),
                    embeddings=torch.from_numpy(file["embeddings"]),
                    person=torch.from_numpy(file["person"]),
                    files=tuple(file["files"].tolist()),
                    calibration=Calibration(threshold, *(None if share != share else share for share in shares)),
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
    people: Sequence[tuple[str, Sequence[str], Tensor]], *, threshold: float | None, model: str, run: str
) -> Gallery:
    """people: name, files and embeddings [k, h] of each; threshold: None to calibrate it."""
    embeddings = torch.cat([own for _, _, own in people])
    person = torch.arange(len(people)).repeat_interleave(torch.tensor([len(own) for _, _, own in people]))
    calibration = calibrate(embeddings, person, len(people), threshold=threshold)
    files = tuple(file for _, own, _ in people for file in own)
    return Gallery(tuple(name for name, _, _ in people), embeddings, person, files, calibration, model, run)


def make_templates(embeddings: Tensor, person: Tensor, number: int) -> Tensor:
    """embeddings: [n, h]; person: int64 [n], each of `number` people present; returns [number, h], of length 1."""
    sums = torch.zeros(number, embeddings.shape[1], dtype=embeddings.dtype).index_add_(0, person, embeddings)
    return F.normalize(sums, dim=1)


def left_out(embeddings: Tensor, person: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """For every photo, its cosine with its own person's template without it, NaN where there is no other photo of the person, and its
    highest cosine with anyone else's template, NaN where there is nobody else. [n] both.
    """
    sums = torch.zeros(number, embeddings.shape[1], dtype=embeddings.dtype).index_add_(0, person, embeddings)
    own = (F.normalize(sums[person] - embeddings, dim=1) * embeddings).sum(1)
    own = torch.where(torch.bincount(person, minlength=number)[person] > 1, own, torch.nan)
    others = embeddings @ F.normalize(sums, dim=1).T
    others[torch.arange(len(person)), person] = -torch.inf
    best = others.amax(1)
    return own, torch.where(best.isfinite(), best, torch.nan)


def calibrate(embeddings: Tensor, person: Tensor, number: int, *, threshold: float | None = None) -> Calibration:
    """The threshold of the module's docstring, or the rates at one that is given.

    Without a second photo of anybody nothing says how alike two photos of one person are: then it lies halfway between the highest cosine
    of two people and 1. Without a second person it lies halfway between the lowest cosine of one person and 0; without either at .5.
    """
    own, other = left_out(embeddings, person, number)
    # A photo that is nearer to somebody else is lost at any threshold.
    lost = own < other
    passed, strangers = own.masked_fill(lost, -torch.inf)[own == own], other[other == other]
    if threshold is None:
        threshold = _best_threshold(passed, strangers)
    kept = float((passed >= threshold).double().mean()) if len(passed) else None
    refused = float((strangers < threshold).double().mean()) if len(strangers) else None
    return Calibration(threshold, kept, refused)


def _best_threshold(passed: Tensor, strangers: Tensor) -> float:
    finite = passed[passed.isfinite()]
    if not len(strangers):
        return float(finite.min()) / 2 if len(finite) else 0.5
    if not len(finite):
        return (float(strangers.max()) + 1) / 2
    values = torch.cat([finite, strangers]).double().unique()
    # Between two neighbouring values nothing changes; the lowest and the highest range end at them.
    ends = torch.cat([values[:1], values, values[-1:]])
    middles = (ends[1:] + ends[:-1]) / 2
    middles[-1] = torch.nextafter(values[-1], torch.tensor(torch.inf, dtype=torch.float64))
    rates = (passed >= middles[:, None]).double().mean(1) + (strangers < middles[:, None]).double().mean(1)
    tied = rates >= rates.max() - 1e-12
    return float(middles[torch.where(tied, ends.diff(), -1).argmax()])
