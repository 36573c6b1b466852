"""Distillation: learning from a trained model (Hinton et al. 2015) in addition to the labels.

    total = hard L + soft T^2 (KL of the scores at temperature T) + feature FitNet + attention AT + distance RKD-D + angle RKD-A

    soft, binary      KL(Bernoulli(sigmoid(t / T)) | Bernoulli(sigmoid(s / T))), summed over the subtasks, mean over the images
    soft, identity    KL(softmax(t / T) | softmax(s / T)) over the subtasks that a client trains, which are mutually exclusive people
    feature           mean square difference of the normalised embeddings (FitNets, Romero et al., ICLR 2015)
    attention         squared distance of the normalised maps mean_c F^2, for each resolution that both trunks have (Zagoruyko & Komodakis,
                      ICLR 2017)
    distance, angle   Huber loss between the distances, over their mean, and between the angles, in the embedding (RKD, Park et al.,
                      CVPR 2019)

s and t are the decision scores of student and teacher, so that the two may have different losses and heads. Departure from FitNets: the
hint is the direction of the embedding. The widths of the embeddings must agree, so that no regressor is needed, and one weight suits any
scale. The usual weights (RepDistiller, Tian et al. 2020) are hard .1 and soft .9 with T = 4, feature 100, attention 1000, distance 25 with
angle 50.
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
    """How a model learns from a trained one, in addition to the labels.

    Args:
        teacher: a run directory, null for none
        hard: weight of the labels' loss
        soft: weight of the loss between the scores of both
        temperature: T, by which scores are divided before they are compared
        exclusive: compare the scores as one distribution over mutually exclusive people, not each subtask by itself
        feature: weight of the loss between embeddings
        attention: weight of the loss between attention maps
        distance: weight of the loss between distances of images in the embedding
        angle: weight of the loss between angles of images in the embedding
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
    """Adds the losses between a teacher and a student to the losses of the labels.

    Args:
        options: weights and temperature.
        teacher: a model of the same subtasks in the same order; without a weight for scores, any trunk. It is not trained.
        student: the model that is trained.

    Raises:
        ValueError: embeddings or maps are compared and a model does not have a single trunk, or the widths differ.
    """

    def __init__(self, options: Distilling, teacher: MultiTaskModel | Trunk, student: MultiTaskModel) -> None:
        trunk = teacher.trunk if isinstance(teacher, MultiTaskModel) else teacher
        if options.inside:
            widths = []
            for role, part in (("teacher", trunk), ("student", student.trunk)):
                if not isinstance(part, Trunk):
                    raise ValueError(
                        f"distil.feature, attention, distance and angle need a single trunk, got the {role}'s {type(part).__name__}"
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
        """Return the losses of a batch.

        The positive and negative parts are those of the labels. The total [T] has all losses; those of no single subtask are divided
        equally among the subtasks.

        Args:
            model: the student.
            inputs: [B, c, H, W].
            mask: bool [B, T], the labels that are known and trained.
            valid: bool [B], False where a row is padding.
            hard: from a representation and its logits to the losses of the labels.
        """
        options = self.options
        student_maps, features = self._look(model.trunk, inputs)
        logits = model.heads(features)
        with torch.no_grad():
            self.teacher.to(inputs.device)
            teacher_maps, teacher_features = self._look(self.trunk, inputs)
        losses = hard(features, logits)
        total = options.hard * losses.tasks
        if isinstance(self.teacher, MultiTaskModel) and options.soft:
            with torch.no_grad():
                targets = _decision(self.teacher)(self.teacher.heads(teacher_features))
            compare = soft_identities if options.exclusive else soft_binary
            counted = mask & valid[:, None]
            total = total + options.soft * compare(_decision(model)(logits), targets, counted, valid, options.temperature)
        shared = logits.new_zeros(())
        if options.feature:
            shared = shared + options.feature * hints(features, teacher_features, valid)
        if options.attention:
            shared = shared + options.attention * attention(student_maps, teacher_maps, valid)
        if options.distance:
            shared = shared + options.distance * distances(features, teacher_features, valid)
        if options.angle:
            shared = shared + options.angle * angles(features, teacher_features, valid)
        return PairLosses(losses.positive, losses.negative, total + shared / logits.shape[1])

    def _look(self, trunk: nn.Module, inputs: Tensor) -> tuple[dict[tuple[int, ...], Tensor], Any]:
        """Return the trunk's maps by resolution, empty without `attention`, and its representation."""
        if not self.options.attention:
            return {}, trunk(inputs)
        with last_maps(trunk) as maps:
            features = trunk(inputs)
        return maps, features


def soft_binary(scores: Tensor, targets: Tensor, counted: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Return the divergence of each subtask's probability, T^2 KL, as a mean over the valid images, [T].

    Args:
        scores: [B, T], decision scores of the student.
        targets: [B, T], those of the teacher.
        counted: bool [B, T], the labels that are trained.
        valid: bool [B].
        temperature: T.
    """
    s, t = scores / temperature, targets / temperature
    yes = torch.sigmoid(t)
    divergence = yes * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - yes) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * torch.where(counted, divergence, 0).sum(0) / valid.sum().clamp_min(1)


def soft_identities(scores: Tensor, targets: Tensor, counted: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Return the same divergence over the counted subtasks of an image as classes; a subtask gets its term of the sum, [T]."""
    lowest = torch.finfo(scores.dtype).min
    s, t = (F.log_softmax(torch.where(counted, z / temperature, lowest), dim=1) for z in (scores, targets))
    divergence = torch.where(counted, t.exp() * (t - s), 0)
    return temperature**2 * divergence.sum(0) / valid.sum().clamp_min(1)


def hints(features: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the mean square difference of the directions of two sets of embeddings [B, h] over the valid images."""
    return _mean((F.normalize(features, dim=1) - F.normalize(targets, dim=1)).square().mean(1), valid)


def attention(student: dict[tuple[int, ...], Tensor], teacher: dict[tuple[int, ...], Tensor], valid: Tensor) -> Tensor:
    """Return the loss between attention maps, summed over the resolutions that both trunks have.

    Args:
        student: maps [B, c, h, w] of the student by resolution.
        teacher: those of the teacher.
        valid: bool [B].

    Raises:
        ValueError: no resolution occurs in both.
    """
    common = [size for size in student if size in teacher]
    if not common:
        raise ValueError(f"distil.attention needs maps of one size in both trunks, got {sorted(student)} and {sorted(teacher)}")
    parts = []
    for size in common:
        s, t = (F.normalize(maps[size].square().mean(1).flatten(1), dim=1) for maps in (student, teacher))
        parts.append(_mean((s - t).square().mean(1), valid))
    return torch.stack(parts).sum()


def distances(features: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the Huber loss between the distances of all pairs of valid images, divided by their mean.

    Args:
        features: [B, h], embeddings of the student.
        targets: [B, h'], those of the teacher.
        valid: bool [B].
    """
    size = len(valid)
    pairs = valid[:, None] & valid & ~torch.eye(size, dtype=torch.bool, device=valid.device)
    student, teacher = (_distances(f, pairs) for f in (features, targets))
    return _mean(F.smooth_l1_loss(student, teacher, reduction="none"), pairs)


def angles(features: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the Huber loss between the cosines of the angles of all triples of valid images; arguments as in `distances`."""
    student, teacher = (_angles(f) for f in (features, targets))
    other = ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    pairs = valid[:, None] & valid & other
    triples = pairs[:, :, None] & pairs[:, None, :] & other
    return _mean(F.smooth_l1_loss(student, teacher, reduction="none"), triples)


def _distances(features: Tensor, pairs: Tensor) -> Tensor:
    squared = (features[:, None] - features[None]).square().sum(-1)
    lengths = torch.where(pairs, squared, 1).clamp_min(TINY).sqrt()
    lengths = torch.where(pairs, lengths, 0)
    return lengths / (lengths.sum() / pairs.sum().clamp_min(1)).clamp_min(TINY)


def _angles(features: Tensor) -> Tensor:
    """Return the cosines of the angles at image i between images j and k, [B, B, B]."""
    directions = F.normalize(features[None] - features[:, None], dim=-1)
    return directions @ directions.transpose(1, 2)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).sum() / counted.sum().clamp_min(1)


@contextlib.contextmanager
def last_maps(trunk: nn.Module) -> Iterator[dict[tuple[int, ...], Tensor]]:
    """Collect the last map [B, c, h, w] of each resolution that the layers of `trunk` compute inside the `with` block."""
    maps: dict[tuple[int, ...], Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
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
