"""Two losses in one model: one for classes or identities, which exclude one another, one for the other subtasks, such as attributes.

A loss with a margin that separates hundreds of people ranks attributes well enough but sets no threshold between yes and no for them
(with 299 people, the balanced accuracy of CelebA's forty is .63 with it, .82 with a loss of their own). Here each kind has a loss with
its own parameters; all heads are of one kind, so that on cosines the loss of the attributes needs a `scale`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mtl.losses.pairs import PairLoss, TaskCounts


class ByKind(PairLoss):
    """Two losses in one model: one for classes or identities, one for attributes.

    Args:
        classes: loss of the first `num_exclusive` subtasks, the classes, made from their number.
        attributes: loss of the other subtasks.
        attribute_weight: weight of an attribute, > 0, where a class has 1.
    """

    def __init__(
        self,
        num_tasks: int,
        *,
        num_exclusive: int,
        classes: Callable[[int], PairLoss],
        attributes: Callable[[int], PairLoss],
        attribute_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < num_exclusive < num_tasks:
            raise ValueError(
                "loss=by_kind needs classes and attributes, such as subtasks=classes_and_attributes has, "
                f"got {num_exclusive} classes among {num_tasks} subtasks"
            )
        if not attribute_weight > 0:
            raise ValueError(f"loss.attribute_weight must be > 0, got {attribute_weight}")
        self.num_exclusive, self.attribute_weight = num_exclusive, attribute_weight
        self.classes, self.attributes = classes(num_exclusive), attributes(num_tasks - num_exclusive)

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        first, last = slice(None, self.num_exclusive), slice(self.num_exclusive, None)
        classes, attributes = (
            loss.terms(logits[:, part], TaskCounts(counts.positives[part], counts.negatives[part], counts.progress))
            for loss, part in ((self.classes, first), (self.attributes, last))
        )
        positive, negative = (
            torch.cat([one, self.attribute_weight * other], 1) for one, other in zip(classes, attributes, strict=True)
        )
        return positive, negative

    def decision(self, logits: Tensor) -> Tensor:
        """See `PairLoss`."""
        classes, attributes = logits[:, : self.num_exclusive], logits[:, self.num_exclusive :]
        return torch.cat([self.classes.decision(classes), self.attributes.decision(attributes)], 1)
