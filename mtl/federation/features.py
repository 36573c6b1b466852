"""Features of a frozen trunk, computed once and trained on in place of the images."""

import logging
from dataclasses import replace

import torch

from mtl.data.federated_data import FederatedData
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.objective import Objective
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.transfer import frozen_features

logger = logging.getLogger(__name__)
BATCH = 100


def cache_features(
    model: MultiTaskModel, count: int, objective: Objective, data: FederatedData, device: torch.device
) -> tuple[FederatedData, Objective]:
    """Return data with features in place of the images, and an objective that takes features.

    From then on the model's trunk skips its first `count` layers.

    Args:
        model: a model with one trunk.
        count: number of frozen layers at the start of the trunk.
        objective: prepares the images.
        data: the federation's data.
        device: where the features are computed.

    Raises:
        ValueError: nothing is frozen, or an image does not always have the same features (augmentation, mirror).
    """
    if not count:
        raise ValueError("transfer.cache=true needs frozen stages: transfer.trained must be less than the stages of the trunk")
    assert isinstance(model.trunk, Trunk)
    original_device = next(model.parameters()).device
    model.to(device)
    parts = [frozen_features(model.trunk, count, objective.inputs(part.to(device))).cpu() for part in data.images.split(BATCH)]
    model.to(original_device)
    model.trunk.passed_over = count
    features = torch.cat(parts)
    logger.info(
        "features of %d images, %.1f MB, replace the images", len(features), features.numel() * features.element_size() / 1e6
    )
    return replace(data, images=features), replace(
        objective, augmentation=Augmentation(flip=False), normalise=Normalise(mean=0.0, deviation=1.0)
    )
