"""Quantisation-aware training (Jacob et al., CVPR 2018): the trunk with simulated int8 weights and activations.

torchao puts the simulation into the captured graph of the trunk; rounding passes gradients straight through. The result is the float model
with the trained weights, which are then quantised like any others.
"""

import copy
import math

import torch

from mtl.base.compiling import slow_guards_allowed
from mtl.data.client_batches import LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.edge.quantize import simulate_int8
from mtl.federation.clients.batches import prepare
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.multi_task_model import MultiTaskModel


def train_quantized(
    model: MultiTaskModel,
    objective: Objective,
    data: FederatedData,
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 0.005,
    momentum: float = 0.9,
    seed: int = 0,
) -> MultiTaskModel:
    """Train the trunk of a copy of `model` with simulated int8 arithmetic.

    Args:
        model: the float model.
        objective: from images to losses.
        data: of one client, on the CPU.
        steps: number of SGD steps.
        batch_size: images of a step.
        learning_rate: of the first step; it falls to zero by a half cosine.
        momentum: of SGD.
        seed: of the order and the augmentation of the images.

    Returns:
        The trained float model, in evaluation mode.

    Raises:
        ValueError: the data are of several clients.
    """
    if data.num_clients != 1:
        raise ValueError(f"data must be of one client, got {data.num_clients}")
    model = copy.deepcopy(model)
    inputs = objective.inputs(data.images[:2])
    simulated = simulate_int8(model.trunk, inputs)
    with slow_guards_allowed():  # torchao captures a pattern when its model changes to training
        whole = MultiTaskModel(simulated, model.heads, model.loss).train()
    optimizer = torch.optim.SGD(simulated.parameters(), lr=learning_rate, momentum=momentum)
    batches = plan_batches(data.clients, [0], LocalWork(batch_size=batch_size, steps=steps), seed=seed, round=0)
    counts = TaskCounts(data.positives.float(), data.negatives.float(), torch.ones(1))
    for step in range(steps):
        batch = prepare(objective, whole, batches, slice(step, step + 1), data.assignment, counts, data)[0]
        batch = batch.first(int(batch.valid.sum()))
        losses = objective.losses(whole, batch.inputs, batch.targets, batch.mask, batch.valid, batch.counts)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        losses.tasks.sum().backward()
        optimizer.step()
    trained = dict(simulated.named_parameters())
    with torch.no_grad():
        for name, parameter in model.trunk.named_parameters():
            parameter.copy_(trained[name])
    return model.eval()
