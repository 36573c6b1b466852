"""Hide a share of the training labels, to see what incomplete labels cost."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from mtl.base.seeding import generator
from mtl.data.splits import Split
from mtl.data.subtasks import Subtasks

By = Literal["label", "image"]


@dataclass(frozen=True)
class KnownLabels:
    """A share of the training labels that is known; the others are hidden at random.

    Args:
        share: share of the training labels that are known, in (0, 1].
        by: what is hidden: label (each label independently) or image (all labels of an image, which then is left out of
            training). Validation and test images keep theirs.
    """

    share: float = 1.0
    by: str = "label"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"known_labels.share must be in (0, 1], got {self.share}")
        if self.by not in get_args(By):
            raise ValueError(f"known_labels.by must be one of {', '.join(get_args(By))}, got {self.by}")

    def __call__(self, subtasks: Subtasks, split: Split, seed: int) -> tuple[Subtasks, Split]:
        """Hide labels of the training images.

        Raises:
            ValueError: where nothing is left to train on.
        """
        if self.share == 1:
            return subtasks, split
        rng = generator(seed, "known-labels")
        if self.by == "image":
            train = split.train[torch.randperm(len(split.train), generator=rng)[: round(self.share * len(split.train))]]
            if not len(train):
                raise ValueError(f"known_labels.share={self.share:g} leaves none of {len(split.train)} training images")
            return subtasks, replace(split, train=train.sort().values)
        known = subtasks.known.clone()
        known[split.train] &= torch.rand(len(split.train), len(subtasks.names), generator=rng) < self.share
        if not bool(known[split.train].any()):
            raise ValueError(f"known_labels.share={self.share:g} leaves no label on {len(split.train)} training images")
        return replace(subtasks, known=known), split
