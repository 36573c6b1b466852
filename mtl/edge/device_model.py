"""The modules that run on a device: from a stored image to scores, embeddings or maps, in one graph."""

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
    """Stored images [N, c, H, W], uint8 or float, to decision scores [N, T] and embeddings [N, h].

    Scores above zero mean yes. Architectures without a single trunk have no embeddings. `outputs` names the outputs. Images and mirror
    images go through the trunk as one batch.

    Args:
        model: the trained model.
        normalise: brings pixels to the range that the trunk expects.
        mirror: whether both outputs are means over the image and its mirror image, as in `Objective`.
        tasks: indices of the subtasks to score, None for all.
        unit: whether embeddings have length 1, each view's and their mean's, as in galleries.

    Raises:
        ValueError: the model normalises an image by the others of its batch (norm=local), which a device does not have.
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
        """[N, c, H, W] -> [N, T] and, with one trunk, [N, h]."""
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
    """Stored pictures [N, c, H, W] to maps [N, 5, h, w] of each picture and its halved versions, see `CentreHead`.

    The caller decodes faces from the maps. `outputs` names them maps_1, maps_2, maps_4, ..., after the factor of the reduction.

    Args:
        model: the trained model, with a detector.
        normalise: brings pixels to the range that the trunk expects.
        halvings: how often the picture is halved.

    Raises:
        ValueError: the model normalises an image by the others of its batch (norm=local).
    """

    def __init__(self, model: MultiTaskModel, normalise: Normalise, *, halvings: int) -> None:
        super().__init__()
        _refuse_local_norm(model)
        assert model.detector is not None
        self.layers, self.detector, self.normalise = map_layers(model.trunk), model.detector, normalise
        self.outputs = tuple(f"maps_{2**level}" for level in range(halvings + 1))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[N, c, H, W] -> [N, 5, h, w] for each output."""
        levels = [to_float(images)]
        for _ in self.outputs[1:]:
            levels.append(F.avg_pool2d(levels[-1], 2))
        return tuple(self.detector(self.layers(self.normalise(level))) for level in levels)


Deployed = DeviceModel | DeviceDetector


def _refuse_local_norm(model: MultiTaskModel) -> None:
    if model.local_norms:
        raise ValueError(
            f"norm must be group or frozen to run on a device, got local: {model.local_norms[0]} normalises an image by the others of "
            "its batch"
        )
