"""What the frozen part of a trunk makes of the images, computed once and put in the images' place."""

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
    """The data with the features in place of the images, and the objective that takes them as they are; the trunk passes over its first
    `count` layers from now on. Raises ValueError where the same picture would not always have the same features.
    """
    if not count:
        raise ValueError("transfer.cache=true needs frozen stages: transfer.trained must be less than the stages of the trunk")
    assert isinstance(model.trunk, Trunk)
    home = next(model.parameters()).device
    model.to(device)
    parts = [frozen_features(model.trunk, count, objective.inputs(part.to(device))).cpu() for part in data.images.split(BATCH)]
    model.to(home)
    model.trunk.passed_over = count
    features = torch.cat(parts)
    logger.info(
        "features of %d images, %.1f MB, take their place", len(features), features.numel() * features.element_size() / 1e6
    )
    return replace(data, images=features), replace(
        objective, augmentation=Augmentation(flip=False), normalise=Normalise(mean=0.0, deviation=1.0)
    )
