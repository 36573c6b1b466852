"""From which cosine on a face is somebody, and what that promises: measured on faces that did not choose it.

The threshold is the one at which the mean of two rates is highest, the middle of the widest range where thresholds tie: `kept`, the
photos of the gallery that are known again when they are left out of their own template, and `refused`, the strangers that reach it with
nobody. Both rates are those of nested folds: a threshold is chosen on four fifths, of photos and of strangers, no stranger in two folds,
and counted on the fifth.

Strangers are faces of people who are not enrolled. Those of a run's own data are another kind of picture than a user's photos, and
training has pushed them apart. So where photos of two people of the gallery are more alike on average than its people and such strangers,
the strangers' cosines are raised by the difference before anything is counted. That difference is known no better than the gallery has
people: the interval of `refused` takes as its n the fewer of strangers and people enrolled (the strangers where they are photos that the
user gave). Without strangers each person of the gallery is left out in turn, the threshold is chosen on the others, and the person's
photos are the strangers.

An interval is Wilson's of 95 % (JASA 1927, "Probable inference, the law of succession, and statistical inference"),

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),      z = 1.96
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
FALLBACK = 0.5
HIGHEST = 1 - 1e-6  # a threshold that some cosine can reach
Z = 1.959964


@dataclass(frozen=True)
class Share:
    """value: the share; faces: counted; people: whose faces they are; num: the n of the interval."""

    value: float
    faces: int
    people: int
    num: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.value, self.num)

    def plain(self) -> dict[str, Any]:
        """For a JSON."""
        counts = {"num": self.num, "num_faces": self.faces, "num_people": self.people}
        return {"share": self.value, "interval": list(self.interval), "interval_kind": "wilson 95 %", **counts}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.0f} to {100 * high:.0f} %, Wilson 95 %, n = {self.num})"


@dataclass(frozen=True)
class Calibration:
    """threshold: the least cosine at which a face gets a name; given: by the user; kept: share of left-out photos that pass it with their
    own person; refused: share of strangers that do not; None where nothing can say; source: where the strangers are from.
    """

    threshold: float
    given: bool = False
    kept: Share | None = None
    refused: Share | None = None
    source: str = ""

    def plain(self) -> dict[str, Any]:
        """For a JSON."""
        kept, refused = (None if share is None else share.plain() for share in (self.kept, self.refused))
        return {"threshold": self.threshold, "given": self.given, "kept": kept, "refused": refused, "strangers": self.source}

    def __str__(self) -> str:
        parts = [f"a face is somebody from cosine {self.threshold:.3f} on"]
        if self.kept is not None:
            parts.append(f"of {self.kept.faces} photos left out, known again: {self.kept}")
        if self.refused is not None:
            faces = f"of {self.refused.faces} faces of {self.refused.people} strangers ({self.source}), unknown"
            parts.append(f"{faces}: {self.refused}")
        else:
            parts.append("nothing says how many strangers it refuses")
        return "; ".join(parts)


@dataclass(frozen=True)
class Strangers:
    """Faces of people who are not enrolled. embeddings: float [m, h], of length 1; person: int64 [m]; names: of the people; own: whether
    they are photos of the user's choice, like those of the gallery; source: in words.
    """

    embeddings: Tensor
    person: Tensor
    names: tuple[str, ...]
    own: bool
    source: str

    def without(self, names: set[str]) -> "Strangers":
        """Without the people of these names."""
        rest = [name not in names for name in self.names]
        keep = torch.tensor(rest, dtype=torch.bool)[self.person]
        place = torch.tensor(rest, dtype=torch.long).cumsum(0) - 1
        kept = tuple(name for name, stays in zip(self.names, rest, strict=True) if stays)
        return Strangers(self.embeddings[keep], place[self.person[keep]], kept, self.own, self.source)


def wilson(share: float, num: int) -> tuple[float, float]:
    """The interval of 95 % of a share seen in `num` trials."""
    middle = (share + Z * Z / (2 * num)) / (1 + Z * Z / num)
    half = Z * math.sqrt(share * (1 - share) / num + Z * Z / (4 * num * num)) / (1 + Z * Z / num)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def check_threshold(threshold: float | None) -> None:
    """Raises ValueError for what no cosine can be on both sides of."""
    if threshold is not None and not -1 < threshold < 1:
        raise ValueError(f"--threshold must be in (-1, 1), a cosine, got {threshold}")


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


def calibrate(
    embeddings: Tensor, person: Tensor, number: int, strangers: Strangers | None = None, *, threshold: float | None = None
) -> Calibration:
    """The threshold of the module's docstring with its rates, or the rates at one that is given.

    Without a second photo of anybody nothing says how alike two photos of one person are: then it lies halfway between the highest cosine
    of a stranger and 1. Without strangers and a second person it lies halfway between the lowest cosine of one person and 0; without
    either at .5. Raises ValueError where a given threshold is not in (-1, 1).
    """
    check_threshold(threshold)
    passed, counted, others = _scores(embeddings, person, number)
    if strangers is None or not len(strangers.names):
        scores, source, num = others[others == others], "each person of the gallery left out in turn", number
        stranger_fold = torch.arange(len(scores)) % FOLDS
    else:
        scores, source = stranger_scores(embeddings, person, number, strangers), strangers.source
        num = len(strangers.names) if strangers.own else min(len(strangers.names), number)
        stranger_fold = strangers.person % FOLDS
    chosen = best_threshold(passed, scores) if threshold is None else threshold
    photo_fold = torch.arange(len(passed)) % FOLDS
    kept, refused = [passed[:0] > 0], [scores[:0] > 0]
    for fold in range(FOLDS):
        here, there = photo_fold == fold, stranger_fold == fold
        at = best_threshold(passed[~here], scores[~there]) if threshold is None else threshold
        kept.append(passed[here] >= at)
        refused.append(scores[there] < at)
    if strangers is None or not len(strangers.names):
        refused = [_person_left_out(embeddings, person, number, threshold)]
    people = number if strangers is None or not len(strangers.names) else len(strangers.names)
    return Calibration(
        threshold=chosen,
        given=threshold is not None,
        kept=_share(torch.cat(kept), counted, None),
        refused=_share(torch.cat(refused), people, num),
        source=source,
    )


def stranger_scores(embeddings: Tensor, person: Tensor, number: int, strangers: Strangers) -> Tensor:
    """The highest cosine of each stranger with a template, [m], raised as the module's docstring says."""
    templates = make_templates(embeddings, person, number)
    cosines = strangers.embeddings @ templates.T
    if strangers.own or number < 2:
        return cosines.amax(1)
    between = (embeddings @ templates.T)[person[:, None] != torch.arange(number)]
    return (cosines + (between.mean() - cosines.mean()).clamp_min(0)).amax(1).clamp_max(1)


def best_threshold(passed: Tensor, strangers: Tensor) -> float:
    """passed: cosines of photos with their own person, -inf where somebody else is nearer; strangers: highest cosines. A threshold that
    keeps nobody is never the best.
    """
    finite = passed[passed.isfinite()]
    if not len(strangers):
        return float(finite.min()) / 2 if len(finite) else FALLBACK
    if not len(finite):
        return min((float(strangers.max()) + 1) / 2, HIGHEST)
    values = torch.cat([finite, strangers]).double().unique()
    values = values[values <= finite.max()]
    # Between two neighbouring values nothing changes; the lowest range ends at them.
    ends = torch.cat([values[:1], values])
    middles = (ends[1:] + ends[:-1]) / 2
    rates = (passed >= middles[:, None]).double().mean(1) + (strangers < middles[:, None]).double().mean(1)
    tied = rates >= rates.max() - 1e-12
    return min(float(middles[torch.where(tied, ends.diff(), -1).argmax()]), HIGHEST)


def _scores(embeddings: Tensor, person: Tensor, number: int) -> tuple[Tensor, int, Tensor]:
    """Of photos that are left out: cosines with their own person, -inf where they are nearer to somebody else and so lost at any threshold;
    whose photos they are, counted; all photos' highest cosines with others.
    """
    own, other = left_out(embeddings, person, number)
    known = own == own
    return own.masked_fill(own < other, -torch.inf)[known], len(person[known].unique()), other


def _person_left_out(embeddings: Tensor, person: Tensor, number: int, threshold: float | None) -> Tensor:
    """Whether each photo is refused by the others' gallery, with the threshold of that."""
    refused = [torch.zeros(0, dtype=torch.bool)]
    for one in range(number if number > 1 else 0):
        rest = person != one
        others = person[rest] - (person[rest] > one).long()
        passed, _, strangers = _scores(embeddings[rest], others, number - 1)
        at = best_threshold(passed, strangers[strangers == strangers]) if threshold is None else threshold
        refused.append((embeddings[~rest] @ make_templates(embeddings[rest], others, number - 1).T).amax(1) < at)
    return torch.cat(refused)


def _share(hits: Tensor, people: int, num: int | None) -> Share | None:
    """num: None for each face a trial of its own."""
    if not len(hits):
        return None
    return Share(float(hits.double().mean()), len(hits), people, len(hits) if num is None else num)
