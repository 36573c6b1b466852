"""Learning from a trained model (Hinton et al. 2015), beside the labels:

    total = hard L + soft T^2 (KL of the scores at temperature T) + feature FitNet + attention AT + distance RKD-D + angle RKD-A

    soft, binary      KL(Bernoulli(sigmoid(t / T)) | Bernoulli(sigmoid(s / T))), summed over the subtasks, mean over the images
    soft, identity    KL(softmax(t / T) | softmax(s / T)) over the subtasks that a client trains, which are people who exclude one another
    feature           mean square difference of the normalised embeddings (FitNets, Romero et al., ICLR 2015)
    attention         squared distance of the normalised maps mean_c F^2, for each resolution that both trunks have (Zagoruyko & Komodakis,
                      ICLR 2017)
    distance, angle   Huber loss between the distances, over their mean, and between the angles, in the embedding (RKD, Park et al.,
                      CVPR 2019)

s and t are decision scores, so that teacher and student may have other losses and other heads. Departure: the hint of FitNets is the
embedding, whose widths must agree, so that no regressor is needed, and its direction alone, so that the weight suits any scale. The
usual weights (RepDistiller, Tian et al. 2020) are hard .1 and soft .9 with T = 4, feature 100, attention 1000, distance 25 with angle
50.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.losses.pairs import PairLoss, PairLosses
from mtl.models.architecture import Representation
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel

TINY = 1e-12


@dataclass(frozen=True)
class Distilling:
    """How a model learns from a trained one, beside the labels.

    teacher: a run directory, null for none; hard: weight of the labels' loss; soft: weight of the loss between the scores of both;
    temperature: T, by which scores are divided before they are compared; exclusive: compare the scores as one distribution over people
    who exclude one another, not each subtask by itself; feature: weight of the loss between embeddings; attention: weight of the loss
    between attention maps; distance: weight of the loss between distances of images in the embedding; angle: weight of the loss between
    angles of images in the embedding.
    """

    teacher: str | None = None
    hard: float = 0.1
    soft: float = 0.9
    temperature: float = 4.0
    exclusive: bool = False
    feature: float = 0.0
    attention: float = 0.0
    distance: float = 0.0
    angle: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hard", "soft", "feature", "attention", "distance", "angle"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"distil.{name} must be >= 0, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"distil.temperature must be > 0, got {self.temperature}")
        if not self.soft and not self.inside:
            raise ValueError("distil must have a weight above zero for soft, feature, attention, distance or angle, got none")

    @property
    def inside(self) -> bool:
        """Whether embeddings or maps are compared."""
        return any((self.feature, self.attention, self.distance, self.angle))


class Distillation:
    """Adds the teacher's part to the losses of a student. teacher: of the same subtasks in the same order; or, where no scores are
    compared, a trunk, whatever it was trained for. It is left as it is.
    """

    def __init__(self, options: Distilling, teacher: MultiTaskModel | Trunk, student: MultiTaskModel) -> None:
        trunk = teacher.trunk if isinstance(teacher, MultiTaskModel) else teacher
        if options.inside:
            widths = []
            for whose, part in (("teacher", trunk), ("student", student.trunk)):
                if not isinstance(part, Trunk):
                    raise ValueError(
                        f"distil.feature, attention, distance and angle need one trunk, and the {whose}'s is {type(part).__name__}"
                    )
                widths.append(part.width)
            if options.feature and widths[0] != widths[1]:
                raise ValueError(
                    f"distil.feature needs embeddings of one width, got {widths[0]} of the teacher and {widths[1]} of the student; "
                    "set trunk.width, or use distil.distance and distil.angle"
                )
        assert isinstance(teacher, MultiTaskModel) or not options.soft
        self.options, self.teacher, self.trunk = options, teacher.eval().requires_grad_(False), trunk

    def losses(
        self,
        model: MultiTaskModel,
        inputs: Tensor,
        mask: Tensor,
        valid: Tensor,
        hard: Callable[[Representation, Tensor], PairLosses],
    ) -> PairLosses:
        """inputs: [B, c, H, W]; mask: bool [B, T], the labels that count; valid: bool [B]; hard: from a representation and its
        logits to the losses of the labels.

        The parts are those of the labels, the total [T] is all together; what concerns no subtask is shared out equally.
        """
        options = self.options
        ours, features = self._look(model.trunk, inputs)
        logits = model.heads(features)
        with torch.no_grad():
            self.teacher.to(inputs.device)
            theirs, wanted = self._look(self.trunk, inputs)
        losses = hard(features, logits)
        total = options.hard * losses.tasks
        if isinstance(self.teacher, MultiTaskModel) and options.soft:
            with torch.no_grad():
                targets = _decision(self.teacher)(self.teacher.heads(wanted))
            compare = soft_identities if options.exclusive else soft_binary
            counted = mask & valid[:, None]
            total = total + options.soft * compare(_decision(model)(logits), targets, counted, valid, options.temperature)
        shared = logits.new_zeros(())
        if options.feature:
            shared = shared + options.feature * hints(features, wanted, valid)
        if options.attention:
            shared = shared + options.attention * attention(ours, theirs, valid)
        if options.distance:
            shared = shared + options.distance * distances(features, wanted, valid)
        if options.angle:
            shared = shared + options.angle * angles(features, wanted, valid)
        return PairLosses(losses.positive, losses.negative, total + shared / logits.shape[1])

    def _look(self, trunk: nn.Module, inputs: Tensor) -> tuple[dict[tuple[int, ...], Tensor], Any]:
        """Maps by resolution where they are wanted, and the representation."""
        if not self.options.attention:
            return {}, trunk(inputs)
        with last_maps(trunk) as maps:
            features = trunk(inputs)
        return maps, features


def soft_binary(scores: Tensor, targets: Tensor, counted: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """scores, targets: decision scores [B, T] of student and teacher; counted: bool [B, T]; returns [T], T^2 KL over the valid images."""
    s, t = scores / temperature, targets / temperature
    yes = torch.sigmoid(t)
    divergence = yes * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - yes) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * torch.where(counted, divergence, 0).sum(0) / valid.sum().clamp_min(1)


def soft_identities(scores: Tensor, targets: Tensor, counted: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """The same over all subtasks of an image that count, as classes; a subtask's share is its term of the sum."""
    lowest = torch.finfo(scores.dtype).min
    s, t = (F.log_softmax(torch.where(counted, z / temperature, lowest), dim=1) for z in (scores, targets))
    divergence = torch.where(counted, t.exp() * (t - s), 0)
    return temperature**2 * divergence.sum(0) / valid.sum().clamp_min(1)


def hints(features: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """features, wanted: [B, h]; returns the mean square difference of their directions over the valid images."""
    return _mean((F.normalize(features, dim=1) - F.normalize(wanted, dim=1)).square().mean(1), valid)


def attention(ours: dict[tuple[int, ...], Tensor], theirs: dict[tuple[int, ...], Tensor], valid: Tensor) -> Tensor:
    """Maps [B, c, h, w] by resolution; returns the sum over the resolutions that both have. Raises ValueError where there are none."""
    common = [size for size in ours if size in theirs]
    if not common:
        raise ValueError(f"distil.attention needs maps of one size in both trunks, got {sorted(ours)} and {sorted(theirs)}")
    parts = []
    for size in common:
        s, t = (F.normalize(maps[size].square().mean(1).flatten(1), dim=1) for maps in (ours, theirs))
        parts.append(_mean((s - t).square().mean(1), valid))
    return torch.stack(parts).sum()


def distances(features: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """features: [B, h]; wanted: [B, h']; the Huber loss between the distances of all pairs of valid images, each over their mean."""
    size = len(valid)
    pairs = valid[:, None] & valid & ~torch.eye(size, dtype=torch.bool, device=valid.device)
    ours, theirs = (_distances(f, pairs) for f in (features, wanted))
    return _mean(F.smooth_l1_loss(ours, theirs, reduction="none"), pairs)


def angles(features: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """The same between the cosines of the angles at the middle one of all triples of valid images."""
    ours, theirs = (_angles(f) for f in (features, wanted))
    other = ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    pairs = valid[:, None] & valid & other
    triples = pairs[:, :, None] & pairs[:, None, :] & other
    return _mean(F.smooth_l1_loss(ours, theirs, reduction="none"), triples)


def _distances(features: Tensor, pairs: Tensor) -> Tensor:
    squared = (features[:, None] - features[None]).square().sum(-1)
    found = torch.where(pairs, squared, 1).clamp_min(TINY).sqrt()
    found = torch.where(pairs, found, 0)
    return found / (found.sum() / pairs.sum().clamp_min(1)).clamp_min(TINY)


def _angles(features: Tensor) -> Tensor:
    """[B, B, B]: at image i between j and k."""
    directions = F.normalize(features[None] - features[:, None], dim=-1)
    return directions @ directions.transpose(1, 2)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).sum() / counted.sum().clamp_min(1)


@contextlib.contextmanager
def last_maps(trunk: nn.Module) -> Iterator[dict[tuple[int, ...], Tensor]]:
    """The last map [B, c, h, w] of each resolution that the layers of `trunk` give while the block lasts."""
    maps: dict[tuple[int, ...], Tensor] = {}

    def keep(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(out, Tensor) and out.ndim == 4:
            maps[tuple(out.shape[2:])] = out

    hooks = [layer.register_forward_hook(keep) for layer in trunk.modules() if not list(layer.children())]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def _decision(model: MultiTaskModel) -> Callable[[Tensor], Tensor]:
    assert isinstance(model.loss, PairLoss)
    return model.loss.decision
