"""The objective on a batch of stored images: prepare them, score them, reduce the pair losses. The same code in every learner."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mtl.data.transforms import Augmentation, Normalise, to_float
from mtl.edge.distil import Distillation
from mtl.losses.pairs import PairLoss, PairLosses, Reduction, TaskCounts, check_reduction, reduce_pairs
from mtl.models.architecture import Representation
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel

BATCH = 500  # images that are scored at once, where memory holds them
NUMBERS = 2**25  # numbers between trunk and scores that are held at once


@dataclass(frozen=True)
class Objective:
    """How images become losses and scores.

    reduction: as in `reduce_pairs`; mirror: score an image by the mean over itself and its mirror image, as is usual for faces;
    distil: what a teacher adds to the losses.
    """

    augmentation: Augmentation
    normalise: Normalise
    reduction: Reduction = "mean"
    mirror: bool = False
    distil: Distillation | None = None

    def __post_init__(self) -> None:
        check_reduction(self.reduction)

    def inputs(self, images: Tensor, draw: Tensor | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Stored images [B, c, H, W] as the trunk sees them; `draw` [B, DRAWS] augments them."""
        pixels = to_float(images, dtype)
        return self.normalise(pixels if draw is None else self.augmentation(pixels, draw.to(dtype)))

    def losses(
        self, model: MultiTaskModel, inputs: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, counts: TaskCounts
    ) -> PairLosses:
        """inputs: from `inputs`, [B, c, H, W]; targets, mask: bool [B, T]; valid: bool [B]; returns [T] each."""
        hard = partial(self._hard, model, targets, mask, valid, counts)
        if self.distil is not None:
            return self.distil.losses(model, inputs, mask, valid, hard)
        representation = model.trunk(inputs)
        return hard(representation, model.heads(representation))

    def _hard(
        self,
        model: MultiTaskModel,
        targets: Tensor,
        mask: Tensor,
        valid: Tensor,
        counts: TaskCounts,
        representation: Representation,
        logits: Tensor,
    ) -> PairLosses:
        """What the labels say of a representation and its logits [B, T]."""
        positive, negative = pair_loss(model).terms(logits, counts)
        penalty = model.penalty(representation)
        if penalty is not None:
            positive, negative = positive + penalty, negative + penalty
        return self.reduce((positive, negative), targets, mask, valid)

    def reduce(self, terms: tuple[Tensor, Tensor], targets: Tensor, mask: Tensor, valid: Tensor) -> PairLosses:
        """terms: of a pair loss, [B, T] each; returns [T] each."""
        return reduce_pairs(*terms, targets, mask, valid, reduction=self.reduction)

    def image_sums(self, losses: PairLosses, valid: Tensor) -> Tensor:
        """Positive and negative losses [2, T] summed over the images of a batch, from the reduced ones; for logging."""
        both = torch.stack([losses.positive, losses.negative]).detach()
        return both if self.reduction == "sum" else both * valid.sum()

    @torch.no_grad()
    def scores(self, model: MultiTaskModel, images: Tensor, *, batch_size: int = BATCH) -> Tensor:
        """Decision scores [N, T] of stored images [N, c, H, W], in evaluation mode; above zero is yes."""
        was_training = model.training
        model.eval()
        scores = [self.decide(model, self.features(model, part)) for part in images.split(images_at_once(model, batch_size))]
        model.train(was_training)
        return torch.cat(scores).float()

    def features(self, model: MultiTaskModel, images: Tensor) -> list[Representation]:
        """What the trunk makes of stored images, and of their mirror images where they count."""
        inputs = self.inputs(images, dtype=next(model.parameters()).dtype)
        return [model.trunk(view) for view in ((inputs, inputs.flip(-1)) if self.mirror else (inputs,))]

    @torch.no_grad()
    def embed(self, model: MultiTaskModel, images: Tensor, *, batch_size: int = BATCH) -> Tensor:
        """Embeddings [N, h] of stored images on the CPU, in evaluation mode: what the trunk makes of them, the mean over the views that
        are scored. Raises ValueError for an architecture in which the subtasks have features of their own.
        """
        if not isinstance(model.trunk, Trunk):
            raise ValueError(
                "an embedding needs a trunk that gives one of an image, and in this architecture the subtasks have their own"
            )
        device = next(model.trunk.parameters(), images).device
        was_training = model.training
        model.eval()
        parts = []
        for part in images.split(batch_size):
            views = [view for view in self.features(model, part.to(device)) if isinstance(view, Tensor)]
            parts.append(torch.stack(views).mean(0))
        model.train(was_training)
        return torch.cat(parts).float().cpu()

    def decide(self, model: MultiTaskModel, features: list[Representation]) -> Tensor:
        """Decision scores [N, T] from `features`."""
        scores = [pair_loss(model).decision(model.heads(view)) for view in features]
        return torch.stack(scores).mean(0)


def images_at_once(model: MultiTaskModel, most: int) -> int:
    """How many images are scored at once, at most `most`."""
    return max(min(NUMBERS // model.activation_numel, most), 1)


def pair_loss(model: MultiTaskModel) -> PairLoss:
    """The loss that the model carries."""
    assert isinstance(model.loss, PairLoss)
    return model.loss
