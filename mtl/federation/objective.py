"""The objective on a batch of stored images: prepare them, score them, reduce the pair losses. Every learner uses it."""

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

BATCH = 500  # images that are scored at once, where memory suffices
MAX_ACTIVATIONS = 2**25  # activation values between trunk and scores that are in memory at once


@dataclass(frozen=True)
class Objective:
    """How images become losses and scores.

    Args:
        augmentation: changes training images at random.
        normalise: brings pixels to the range that the trunk expects.
        reduction: as in `reduce_pairs`.
        mirror: whether the score of an image is the mean over it and its mirror image, as is usual for faces.
        distil: adds the loss of a teacher, None for no teacher.

    Raises:
        ValueError: `reduction` is unknown.
    """

    augmentation: Augmentation
    normalise: Normalise
    reduction: Reduction = "mean"
    mirror: bool = False
    distil: Distillation | None = None

    def __post_init__(self) -> None:
        check_reduction(self.reduction)

    def inputs(self, images: Tensor, draw: Tensor | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return stored images [B, c, H, W] as the trunk takes them, augmented by the random numbers `draw` [B, DRAWS]."""
        pixels = to_float(images, dtype)
        return self.normalise(pixels if draw is None else self.augmentation(pixels, draw.to(dtype)))

    def losses(
        self, model: MultiTaskModel, inputs: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, counts: TaskCounts
    ) -> PairLosses:
        """Return the losses of a batch, [T] each.

        Args:
            model: the model.
            inputs: [B, c, H, W], from `inputs`.
            targets: bool [B, T].
            mask: bool [B, T], the labels that are known and trained.
            valid: bool [B], False where a row is padding.
            counts: labels of each kind, for losses that depend on them.
        """
        label_losses = partial(self._label_losses, model, targets, mask, valid, counts)
        if self.distil is not None:
            return self.distil.losses(model, inputs, mask, valid, label_losses)
        representation = model.trunk(inputs)
        return label_losses(representation, model.heads(representation))

    def _label_losses(
        self,
        model: MultiTaskModel,
        targets: Tensor,
        mask: Tensor,
        valid: Tensor,
        counts: TaskCounts,
        representation: Representation,
        logits: Tensor,
    ) -> PairLosses:
        """Return the losses of a representation and its logits [B, T] against the labels."""
        positive, negative = pair_loss(model).terms(logits, counts)
        penalty = model.penalty(representation)
        if penalty is not None:
            positive, negative = positive + penalty, negative + penalty
        return self.reduce((positive, negative), targets, mask, valid)

    def reduce(self, terms: tuple[Tensor, Tensor], targets: Tensor, mask: Tensor, valid: Tensor) -> PairLosses:
        """Reduce the terms of a pair loss, [B, T] each, to losses [T]; arguments as in `losses`."""
        return reduce_pairs(*terms, targets, mask, valid, reduction=self.reduction)

    def image_sums(self, losses: PairLosses, valid: Tensor) -> Tensor:
        """Return the positive and negative losses [2, T] summed over the images of a batch, for logging."""
        parts = torch.stack([losses.positive, losses.negative]).detach()
        return parts if self.reduction == "sum" else parts * valid.sum()

    @torch.no_grad()
    def scores(self, model: MultiTaskModel, images: Tensor, *, batch_size: int = BATCH) -> Tensor:
        """Return decision scores [N, T] of stored images [N, c, H, W], in evaluation mode; above zero is yes."""
        was_training = model.training
        model.eval()
        scores = [self.decide(model, self.features(model, part)) for part in images.split(images_at_once(model, batch_size))]
        model.train(was_training)
        return torch.cat(scores).float()

    def features(self, model: MultiTaskModel, images: Tensor) -> list[Representation]:
        """Return the trunk's representation of stored images and, with `mirror`, of their mirror images."""
        inputs = self.inputs(images, dtype=next(model.parameters()).dtype)
        return [model.trunk(view) for view in ((inputs, inputs.flip(-1)) if self.mirror else (inputs,))]

    @torch.no_grad()
    def embed(self, model: MultiTaskModel, images: Tensor, *, batch_size: int = BATCH) -> Tensor:
        """Return embeddings [N, h] of stored images on the CPU, in evaluation mode.

        An embedding is the trunk's features of the image, with `mirror` the mean over the image and its mirror image.

        Raises:
            ValueError: in this architecture each subtask has its own features.
        """
        if not isinstance(model.trunk, Trunk):
            raise ValueError(
                "an embedding needs an architecture in which all subtasks share one feature vector, "
                f"got a trunk of type {type(model.trunk).__name__}"
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
        """Return decision scores [N, T] from what `features` returned."""
        scores = [pair_loss(model).decision(model.heads(view)) for view in features]
        return torch.stack(scores).mean(0)


def images_at_once(model: MultiTaskModel, limit: int) -> int:
    """Return how many images are scored at once, at most `limit`."""
    return max(min(MAX_ACTIVATIONS // model.activation_numel, limit), 1)


def pair_loss(model: MultiTaskModel) -> PairLoss:
    """Return the model's loss."""
    assert isinstance(model.loss, PairLoss)
    return model.loss
