"""The minimum cosine similarity to accept a match, and its error rates, estimated by cross-validation.

The threshold maximises the mean of two rates; of a range of equally good thresholds the middle of the widest is taken. `kept` is the share
of the gallery's photos that are recognised when they are left out of their own person's template. `refused` is the share of strangers that
match no one. Both rates are cross-validated: the threshold is chosen on four fifths of the photos and the strangers, and the rates are
counted on the remaining fifth. All faces of a stranger are in the same fold.

Strangers are faces of people who are not enrolled. Those from the run's training data differ from a user's photos, and training has
reduced their similarity. Where photos of two people of the gallery are more similar on average than photos of its people and of such
strangers, the strangers' cosines are therefore raised by the difference first. The precision of this difference is limited by the number
of people in the gallery: the n in the interval of `refused` is the smaller of the numbers of strangers and of people enrolled (the number
of strangers where they are photos from the user). Without strangers, each person of the gallery is left out in turn, the threshold is
chosen on the others, and the person's photos serve as strangers.

The intervals are Wilson's of 95 % (JASA 1927, "Probable inference, the law of succession, and statistical inference"),

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
HIGHEST = 1 - 1e-6  # the highest threshold that a cosine can reach
Z = 1.959964


@dataclass(frozen=True)
class Share:
    """A share of faces, with its interval.

    Attributes:
        value: the share, 0 to 1.
        faces: number of faces counted.
        people: number of people whose faces they are.
        num: the n of the interval.
    """

    value: float
    faces: int
    people: int
    num: int

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % interval."""
        return wilson(self.value, self.num)

    def plain(self) -> dict[str, Any]:
        """Return the fields as they are written to JSON."""
        counts = {"num": self.num, "num_faces": self.faces, "num_people": self.people}
        return {"share": self.value, "interval": list(self.interval), "interval_kind": "wilson 95 %", **counts}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.0f} to {100 * high:.0f} %, Wilson 95 %, n = {self.num})"


@dataclass(frozen=True)
class Calibration:
    """A threshold and its error rates.

    Attributes:
        threshold: minimum cosine similarity to accept a match.
        user_set: whether the user set the threshold.
        kept: share of left-out photos that match their own person; None where no one has two photos.
        refused: share of strangers that match no one; None without strangers.
        source: where the strangers come from, in words.
    """

    threshold: float
    user_set: bool = False
    kept: Share | None = None
    refused: Share | None = None
    source: str = ""

    def plain(self) -> dict[str, Any]:
        """Return the fields as they are written to JSON."""
        kept, refused = (None if share is None else share.plain() for share in (self.kept, self.refused))
        return {"threshold": self.threshold, "given": self.user_set, "kept": kept, "refused": refused, "strangers": self.source}

    def __str__(self) -> str:
        parts = [f"minimum cosine to accept a match: {self.threshold:.3f}"]
        if self.kept is not None:
            parts.append(f"of {self.kept.faces} photos left out, recognised: {self.kept}")
        if self.refused is not None:
            faces = f"of {self.refused.faces} faces of {self.refused.people} strangers ({self.source}), unknown"
            parts.append(f"{faces}: {self.refused}")
        else:
            parts.append("the share of strangers that it refuses is unknown")
        return "; ".join(parts)


@dataclass(frozen=True)
class Strangers:
    """Faces of people who are not enrolled.

    Attributes:
        embeddings: float [m, h], of length 1.
        person: int64 [m], index in `names` of each face's person.
        names: names of the people.
        from_user: whether the user chose the photos, like those of the gallery.
        source: where the faces come from, in words.
    """

    embeddings: Tensor
    person: Tensor
    names: tuple[str, ...]
    from_user: bool
    source: str

    def without(self, names: set[str]) -> "Strangers":
        """Return the strangers without the people of these names."""
        stays = [name not in names for name in self.names]
        keep = torch.tensor(stays, dtype=torch.bool)[self.person]
        index = torch.tensor(stays, dtype=torch.long).cumsum(0) - 1
        remaining = tuple(name for name in self.names if name not in names)
        return Strangers(self.embeddings[keep], index[self.person[keep]], remaining, self.from_user, self.source)


def wilson(share: float, num: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was observed in `num` trials."""
    middle = (share + Z * Z / (2 * num)) / (1 + Z * Z / num)
    half = Z * math.sqrt(share * (1 - share) / num + Z * Z / (4 * num * num)) / (1 + Z * Z / num)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def check_threshold(threshold: float | None) -> None:
    """Raise ValueError where a threshold is not in (-1, 1)."""
    if threshold is not None and not -1 < threshold < 1:
        raise ValueError(f"--threshold must be in (-1, 1), a cosine, got {threshold}")


def make_templates(embeddings: Tensor, person: Tensor, number: int) -> Tensor:
    """Return the template of each person, the mean of the embeddings brought to length 1, [P, h].

    Args:
        embeddings: [n, h].
        person: int64 [n], the person of each; every person occurs.
        number: number of people, P.
    """
    sums = torch.zeros(number, embeddings.shape[1], dtype=embeddings.dtype).index_add_(0, person, embeddings)
    return F.normalize(sums, dim=1)


def left_out(embeddings: Tensor, person: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the cosines of every photo with its own person and with the others.

    Args:
        embeddings: [n, h], of length 1.
        person: int64 [n].
        number: number of people, P.

    Returns:
        The cosine with the own person's template without the photo, [n], NaN where the person has no other photo; and the highest cosine
        with another person's template, [n], NaN where there is no other person.
    """
    sums = torch.zeros(number, embeddings.shape[1], dtype=embeddings.dtype).index_add_(0, person, embeddings)
    same = (F.normalize(sums[person] - embeddings, dim=1) * embeddings).sum(1)
    same = torch.where(torch.bincount(person, minlength=number)[person] > 1, same, torch.nan)
    cosines = embeddings @ F.normalize(sums, dim=1).T
    cosines[torch.arange(len(person)), person] = -torch.inf
    highest = cosines.amax(1)
    return same, torch.where(highest.isfinite(), highest, torch.nan)


def calibrate(
    embeddings: Tensor, person: Tensor, number: int, strangers: Strangers | None = None, *, threshold: float | None = None
) -> Calibration:
    """Choose a threshold and estimate its rates; see the module.

    Where no person has two photos, the threshold is halfway between the highest cosine of a stranger and 1. With one person and no
    strangers it is halfway between the person's lowest cosine and 0; with neither it is .5.

    Args:
        embeddings: [n, h], of length 1, of the gallery.
        person: int64 [n].
        number: number of people, P.
        strangers: faces of people who are not enrolled.
        threshold: a threshold that the user set, None to choose it.

    Raises:
        ValueError: `threshold` is not in (-1, 1).
    """
    check_threshold(threshold)
    passed, counted, others = _scores(embeddings, person, number)
    if strangers is None or not len(strangers.names):
        scores, source, num = others[others == others], "each person of the gallery left out in turn", number
        stranger_fold = torch.arange(len(scores)) % FOLDS
    else:
        scores, source = stranger_scores(embeddings, person, number, strangers), strangers.source
        num = len(strangers.names) if strangers.from_user else min(len(strangers.names), number)
        stranger_fold = strangers.person % FOLDS
    chosen = best_threshold(passed, scores) if threshold is None else threshold
    photo_fold = torch.arange(len(passed)) % FOLDS
    kept, refused = [passed[:0] > 0], [scores[:0] > 0]
    for fold in range(FOLDS):
        test_photos, test_strangers = photo_fold == fold, stranger_fold == fold
        at = best_threshold(passed[~test_photos], scores[~test_strangers]) if threshold is None else threshold
        kept.append(passed[test_photos] >= at)
        refused.append(scores[test_strangers] < at)
    if strangers is None or not len(strangers.names):
        refused = [_person_left_out(embeddings, person, number, threshold)]
    people = number if strangers is None or not len(strangers.names) else len(strangers.names)
    return Calibration(
        threshold=chosen,
        user_set=threshold is not None,
        kept=_share(torch.cat(kept), counted, None),
        refused=_share(torch.cat(refused), people, num),
        source=source,
    )


def stranger_scores(embeddings: Tensor, person: Tensor, number: int, strangers: Strangers) -> Tensor:
    """Return the highest cosine of each stranger with a template, [m], raised as the module says; arguments as in `calibrate`."""
    templates = make_templates(embeddings, person, number)
    cosines = strangers.embeddings @ templates.T
    if strangers.from_user or number < 2:
        return cosines.amax(1)
    between = (embeddings @ templates.T)[person[:, None] != torch.arange(number)]
    return (cosines + (between.mean() - cosines.mean()).clamp_min(0)).amax(1).clamp_max(1)


def best_threshold(passed: Tensor, strangers: Tensor) -> float:
    """Return the threshold that maximises the mean of the two rates; at least one photo passes it.

    Args:
        passed: cosines of photos with their own person, -inf where another person is nearer.
        strangers: highest cosine of each stranger with a template.
    """
    finite = passed[passed.isfinite()]
    if not len(strangers):
        return float(finite.min()) / 2 if len(finite) else FALLBACK
    if not len(finite):
        return min((float(strangers.max()) + 1) / 2, HIGHEST)
    values = torch.cat([finite, strangers]).double().unique()
    values = values[values <= finite.max()]
    # The rates do not change between two neighbouring values.
    ends = torch.cat([values[:1], values])
    middles = (ends[1:] + ends[:-1]) / 2
    rates = (passed >= middles[:, None]).double().mean(1) + (strangers < middles[:, None]).double().mean(1)
    tied = rates >= rates.max() - 1e-12
    return min(float(middles[torch.where(tied, ends.diff(), -1).argmax()]), HIGHEST)


def _scores(embeddings: Tensor, person: Tensor, number: int) -> tuple[Tensor, int, Tensor]:
    """Return scores of the photos, each left out of its person's template.

    Returns:
        The cosines with the own person, of photos whose person has another one, -inf where another person is nearer, so that the photo is
        lost at any threshold; the number of people of these photos; and all photos' highest cosines with others.
    """
    same, other = left_out(embeddings, person, number)
    has_second = same == same
    return same.masked_fill(same < other, -torch.inf)[has_second], len(person[has_second].unique()), other


def _person_left_out(embeddings: Tensor, person: Tensor, number: int, threshold: float | None) -> Tensor:
    """Return whether each photo is refused by the gallery of the other people, at that gallery's threshold, bool [n]."""
    refused = [torch.zeros(0, dtype=torch.bool)]
    for left in range(number if number > 1 else 0):
        remaining = person != left
        others = person[remaining] - (person[remaining] > left).long()
        passed, _, strangers = _scores(embeddings[remaining], others, number - 1)
        at = best_threshold(passed, strangers[strangers == strangers]) if threshold is None else threshold
        refused.append((embeddings[~remaining] @ make_templates(embeddings[remaining], others, number - 1).T).amax(1) < at)
    return torch.cat(refused)


def _share(hits: Tensor, people: int, num: int | None) -> Share | None:
    """Return the share of hits; `num` is the n of its interval, None for the number of faces."""
    if not len(hits):
        return None
    return Share(float(hits.double().mean()), len(hits), people, len(hits) if num is None else num)
