"""Face verification: how well a score of two pictures says whether they show the same person.

A pair is accepted where its score is above a threshold. TAR and FAR are the shares of the pairs of one person and of two that are
accepted; FRR is 1 - TAR. Thresholds that make an accuracy or a rate are chosen on the other folds and never on the fold that they are
tried on, as LFW's protocol has it (Huang et al. 2007; Huang & Learned-Miller 2014): mean over the folds, with the standard error of
that mean.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FARS = (1e-1, 1e-2, 1e-3)


@dataclass(frozen=True)
class Roc:
    """All points of a ROC curve, float64 [V], from the strictest threshold, which accepts nothing, to the laxest.

    A pair is accepted at a point where its score is at least the threshold.

    Attributes:
        far: share of the pairs of two people that are accepted.
        tar: share of the pairs of one person that are accepted.
        threshold: the threshold of the point.
    """

    far: Tensor
    tar: Tensor
    threshold: Tensor

    @property
    def frr(self) -> Tensor:
        """Share of the pairs of one person that are refused, 1 - TAR."""
        return 1 - self.tar

    @property
    def auc(self) -> float:
        """Area under the curve."""
        return float(torch.trapezoid(self.tar, self.far))

    @property
    def eer(self) -> float:
        """The rate at which FAR and FRR are equal, interpolated linearly between the two points around it."""
        gap = self.far - self.frr
        after = int((gap >= 0).nonzero()[0])
        before = after - 1
        part = float(-gap[before] / (gap[after] - gap[before]))
        return float(self.far[before] + part * (self.far[after] - self.far[before]))


@dataclass(frozen=True)
class Verification:
    """Accuracy and rates of each fold, with thresholds made on the other folds.

    Attributes:
        accuracy: float64 [F], of each fold with the threshold of the others.
        threshold: float64 [F], the thresholds of these accuracies.
        tar: TAR of each fold, float64 [F], by the FAR that the threshold was made for; only FARs that the other folds can measure, which
            is one false accept or more.
        far: FAR of each fold, float64 [F], by the same FARs.
        roc: of all pairs.
    """

    accuracy: Tensor
    threshold: Tensor
    tar: dict[float, Tensor]
    far: dict[float, Tensor]
    roc: Roc

    def summary(self) -> dict[str, float]:
        """Plain numbers; `deviation` is between the folds, `standard_error` that of the mean over them."""
        values = {
            "accuracy": float(self.accuracy.mean()),
            "accuracy_deviation": float(self.accuracy.std()),
            "accuracy_standard_error": float(self.accuracy.std()) / math.sqrt(len(self.accuracy)),
            "auc": self.roc.auc,
            "eer": self.roc.eer,
        }
        for rate, tar in self.tar.items():
            values[f"tar@far={rate:g}"] = float(tar.mean())
            values[f"far@far={rate:g}"] = float(self.far[rate].mean())
        return values


def pair_scores(embeddings: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the embeddings of each pair, float64 [P]; a zero embedding has cosine 0.

    Args:
        embeddings: [N, h].
        first: int64 [P], the row of the first picture.
        second: int64 [P], the row of the second picture.
    """
    unit = F.normalize(embeddings.double(), dim=-1)
    return (unit[first] * unit[second]).sum(-1)


def roc_curve(scores: Tensor, same: Tensor) -> Roc:
    """The ROC curve of scored pairs.

    Args:
        scores: [P].
        same: bool [P], whether a pair shows one person.

    Raises:
        ValueError: where a kind of pair is missing or a score is not finite.
    """
    _check(scores, same)
    order = scores.double().argsort(descending=True)
    ranked, positive = scores.double()[order], same[order]
    # Equal scores are accepted at once: the curve has a point after the last of them.
    ends = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool, device=ranked.device)])
    zero = torch.zeros(1, dtype=torch.float64, device=ranked.device)
    tar, far = (torch.cat([zero, kind.cumsum(0)[ends] / kind.sum()]) for kind in (positive.double(), (~positive).double()))
    return Roc(far, tar, torch.cat([zero + math.inf, ranked[ends]]))


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """The threshold that decides most pairs rightly, half way between two neighbouring scores; the middle one of those equally good."""
    roc = roc_curve(scores, same)
    right = roc.tar * same.sum() + (1 - roc.far) * (~same).sum()
    best = (right.round() == right.round().max()).nonzero().flatten()
    point = int(best[len(best) // 2])
    here = float(roc.threshold[point])
    below = float(roc.threshold[point + 1]) if point + 1 < len(roc.threshold) else -math.inf
    if math.isinf(here):
        return below
    if math.isinf(below):
        return here - max(1.0, abs(here))
    middle = here / 2 + below / 2
    # Between neighbouring numbers there is none: `below` itself still separates them, `here` would not.
    return middle if middle < here else below


def far_threshold(scores: Tensor, same: Tensor, far: float) -> float | None:
    """The lowest threshold with at most a share `far` of the pairs of two people above it; None where that share is less than one pair.

    Args:
        scores: [P].
        same: bool [P], whether a pair shows one person.
        far: the share.
    """
    negatives = scores[~same].double().sort(descending=True).values
    allowed = math.floor(far * len(negatives) + 1e-9)
    return float(negatives[allowed]) if 0 < allowed < len(negatives) else None


def verify(scores: Tensor, same: Tensor, fold: Tensor, *, fars: tuple[float, ...] = FARS) -> Verification:
    """Verify pairs in folds: thresholds are made on all folds but one and tried on that one.

    Args:
        scores: [P].
        same: bool [P], whether a pair shows one person.
        fold: int64 [P], the fold of each pair.
        fars: false accept rates for which TAR is measured.

    Raises:
        ValueError: where a fold lacks a kind of pair, or there is but one fold.
    """
    scores = scores.double()
    folds = fold.unique().tolist()
    if len(folds) < 2:
        raise ValueError(f"verification needs at least 2 folds, got {len(folds)}")
    accuracy, thresholds = [], []
    tar: dict[float, list[Tensor]] = {}
    achieved: dict[float, list[Tensor]] = {}
    for number in folds:
        here = fold == number
        _check(scores[here], same[here])
        threshold = best_threshold(scores[~here], same[~here])
        thresholds.append(threshold)
        accuracy.append(((scores[here] > threshold) == same[here]).double().mean())
        for rate in fars:
            limit = far_threshold(scores[~here], same[~here], rate)
            if limit is not None:
                accepted = (scores[here] > limit).double()
                tar.setdefault(rate, []).append(accepted[same[here]].mean())
                achieved.setdefault(rate, []).append(accepted[~same[here]].mean())
    measured = [rate for rate in fars if len(tar.get(rate, ())) == len(folds)]
    return Verification(
        accuracy=torch.stack(accuracy),
        threshold=torch.tensor(thresholds, dtype=torch.float64),
        tar={rate: torch.stack(tar[rate]) for rate in measured},
        far={rate: torch.stack(achieved[rate]) for rate in measured},
        roc=roc_curve(scores, same),
    )


def _check(scores: Tensor, same: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        raise ValueError(f"scores must be finite, got {int((~scores.isfinite()).sum())} of {len(scores)} that are not")
    if not bool(same.any()) or bool(same.all()):
        raise ValueError(f"pairs of one person and of two are needed, got {int(same.sum())} and {int((~same).sum())}")
