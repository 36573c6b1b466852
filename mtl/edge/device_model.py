"""What runs on a device: everything from the stored image to the scores of the subtasks, in one graph."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.data.transforms import Normalise, to_float
from mtl.losses.pairs import PairLoss
from mtl.models.hard_sharing import HardSharing


class DeviceModel(nn.Module):
    """Images [N, c, H, W] as they are stored, uint8 or float, to decision scores [N, T], above zero is yes, and embeddings [N, h].

    mirror: both are means over the image and its mirror image, as in `Objective`; tasks: the places of the subtasks that are wanted, None
    for all. The views of all images go through the trunk as one batch. Raises ValueError where the model normalises an image by the
    others of its batch (norm=local), which a device does not have.
    """

    places: Tensor | None

    def __init__(
        self, model: HardSharing, normalise: Normalise, *, mirror: bool = False, tasks: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if model.local_norms:
            raise ValueError(
                f"norm=local cannot go to a device: {model.local_norms[0]} normalises an image by the others of its batch; train with "
                "norm=group or norm=frozen"
            )
        assert isinstance(model.loss, PairLoss)
        self.trunk, self.heads, self.loss = model.trunk, model.heads, model.loss
        self.normalise, self.mirror = normalise, mirror
        self.register_buffer("places", None if tasks is None else torch.tensor(tasks), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.normalise(to_float(images))
        if self.mirror:
            inputs = torch.cat([inputs, inputs.flip(-1)])
        features = self.trunk(inputs)
        scores = self.loss.decision(self.heads(features))
        if self.mirror:
            scores, features = scores.unflatten(0, (2, -1)).mean(0), features.unflatten(0, (2, -1)).mean(0)
        return scores if self.places is None else scores.index_select(1, self.places), features
