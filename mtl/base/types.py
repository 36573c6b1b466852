"""The types that every room shares.

Shape legend: N images, B images in a batch, T subtasks, C clients, K clients in a cohort, R rounds, S local steps, h feature width.
"""

from dataclasses import dataclass

from torch import Tensor

Params = dict[str, Tensor]
Slots = dict[str, Params]  # named sets of parameters: `params`, and what else an algorithm sends or keeps


class Diverged(RuntimeError):
    """Training produced a loss that is not finite."""


class NoObjective(ValueError):
    """A run has no validation metric of the name that a search is to maximise, or none at all."""


class InUse(ValueError):
    """Another process works in the run directory."""


class Interrupted(RuntimeError):
    """The run was asked to stop; its last round is saved."""


@dataclass(frozen=True)
class ImageData:
    """A data set in memory, decoded once.

    Attributes:
        name: the name of the data set.
        images: uint8 [N, channels, height, width]; float32 where the data are not pictures.
        classes: int64 [N], the class or identity of each image, -1 where it is not known.
        class_names: one name per class; may be empty when the data have no classes.
        attributes: int8 [N, A], 1 yes, 0 no, -1 not known.
        attribute_names: one name per attribute.
        source: where the images were read from, for logs and reports.
        official_split: int8 [N], 0 train, 1 validation, 2 test; None where the data come without one.
        owners: int64 [N], the device that made each image; None where it is not known.
    """

    name: str
    images: Tensor
    classes: Tensor
    class_names: tuple[str, ...]
    attributes: Tensor
    attribute_names: tuple[str, ...]
    source: str
    official_split: Tensor | None = None
    owners: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)
