"""What runs on a device: everything from the stored image to what the device needs of it, in one graph."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.data.transforms import Normalise, to_float
from mtl.losses.pairs import PairLoss
from mtl.models.centre import map_layers
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel


class DeviceModel(nn.Module):
    """Images [N, c, H, W] as they are stored, uint8 or float, to decision scores [N, T], above zero is yes, and, where the trunk gives one
    of an image, embeddings [N, h]. outputs: their names.

    mirror: both are means over the image and its mirror image, as in `Objective`; tasks: the places of the subtasks that are wanted, None
    for all; unit: embeddings of length 1, of each view and of their mean, as galleries hold them. The views of all images go through the
    trunk as one batch. Raises ValueError where the model normalises an image by the others of its batch (norm=local), which a device does
    not have.
    """

    places: Tensor | None

    def __init__(
        self,
        model: MultiTaskModel,
        normalise: Normalise,
        *,
        mirror: bool = False,
        tasks: Sequence[int] | None = None,
        unit: bool = False,
    ) -> None:
        super().__init__()
        _refuse_local_norm(model)
        assert isinstance(model.loss, PairLoss)
        self.outputs = ("scores", "embeddings") if isinstance(model.trunk, Trunk) else ("scores",)
        self.trunk, self.heads, self.loss = model.trunk, model.heads, model.loss
        self.normalise, self.mirror, self.unit = normalise, mirror, unit
        self.register_buffer("places", None if tasks is None else torch.tensor(tasks), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        inputs = self.normalise(to_float(images))
        if self.mirror:
            inputs = torch.cat([inputs, inputs.flip(-1)])
        features = self.trunk(inputs)
        scores = self._over_views(self.loss.decision(self.heads(features)))
        if self.places is not None:
            scores = scores.index_select(1, self.places)
        if "embeddings" not in self.outputs:
            return (scores,)
        if not self.unit:
            return scores, self._over_views(features)
        return scores, F.normalize(self._over_views(F.normalize(features, dim=1)), dim=1)

    def _over_views(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (2, -1)).mean(0) if self.mirror else values


class DeviceDetector(nn.Module):
    """Pictures [N, c, H, W] as they are stored to maps [N, 5, h, w] of the picture and of its halves, see `CentreHead`; what they say of
    faces is decoded outside. halvings: how often the picture is halved; outputs: maps_1, maps_2, maps_4, ..., by what it was divided.
    """

    def __init__(self, model: MultiTaskModel, normalise: Normalise, *, halvings: int) -> None:
        super().__init__()
        _refuse_local_norm(model)
        assert model.detector is not None
        self.layers, self.detector, self.normalise = map_layers(model.trunk), model.detector, normalise
        self.outputs = tuple(f"maps_{2**level}" for level in range(halvings + 1))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = [to_float(images)]
        for _ in self.outputs[1:]:
            levels.append(F.avg_pool2d(levels[-1], 2))
        return tuple(self.detector(self.layers(self.normalise(level))) for level in levels)


Deployed = DeviceModel | DeviceDetector


def _refuse_local_norm(model: MultiTaskModel) -> None:
    if model.local_norms:
        raise ValueError(
            f"norm=local cannot go to a device: {model.local_norms[0]} normalises an image by the others of its batch; train with "
            "norm=group or norm=frozen"
        )
