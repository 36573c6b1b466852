"""The cost of a round for each client, known before training: FLOPs, bytes on the link, memory.

FLOPs and saved activations are counted on the simulated step, which computes all heads in single precision; a device could leave out the
heads that it does not train. The memory of a step is modelled as

    parameters + gradients + state of the client algorithm + buffers + saved activations of the largest batch

with the head rows of the client's subtasks alone, and without the framework, its workspaces and the stored images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl.base import tree
from mtl.base.types import Params
from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.devices.ledger import Workload
from mtl.federation.algorithms.contract import STEPS, ClientAlgorithm, Optimizer
from mtl.federation.layout import Layout
from mtl.federation.message import client_bytes
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.cnn import ImageShape, Trunk
from mtl.models.flops import StepCost, count_step, image_flops
from mtl.models.multi_task_model import MultiTaskModel

FEDAVG = ClientAlgorithm()


@dataclass(frozen=True)
class TrainingCost:
    """The counted cost of a model's training step.

    Attributes:
        step: FLOPs and saved activations of a local step.
        image: FLOPs of scoring an image, see `models.flops`.
        parameters: number of parameters.
        state_bytes: from the assignment, bool [C, T], to the bytes [C] of parameters, gradients and algorithm state.
        buffers: bytes of the model's buffers.
        batch_size: images of a full batch.
        passes: gradients that are computed in a step.
    """

    step: StepCost
    image: int
    parameters: int
    state_bytes: Callable[[Tensor], Tensor]
    buffers: int
    batch_size: int
    passes: int = 1

    def memory(self, assignment: Tensor, images: Tensor) -> Tensor:
        """Return the bytes that a training step of each client needs, float64 [C].

        Args:
            assignment: bool [C, T], the subtasks that each client trains.
            images: [C], number of training images of each client.
        """
        batches = images.clamp(max=self.batch_size)
        saved = self.step.saved.fixed + self.step.saved.per_image * batches
        return (self.state_bytes(assignment) + self.buffers + saved).double()

    def summary(self, num_tasks: int) -> dict[str, float]:
        """Return the metrics of the cost.

        `flops_forward` is for an image, `flops_training` for an image of a full batch's training step; activations and memory are for a
        full batch with all heads.
        """
        full = torch.tensor([self.batch_size])
        return {
            "parameters": self.parameters,
            "flops_forward": self.image,
            "flops_training": self.passes * self.step.training(self.batch_size) / self.batch_size,
            "modelled_activation_bytes": self.step.saved(self.batch_size),
            "modelled_memory_bytes": float(self.memory(torch.ones(1, num_tasks, dtype=torch.bool), full)),
        }


def training_cost(
    model: MultiTaskModel,
    objective: Objective,
    optimizer: Optimizer,
    work: LocalWork,
    data: FederatedData,
    *,
    client: ClientAlgorithm = FEDAVG,
    extra_loss: Callable[[MultiTaskModel], Tensor] | None = None,
    image_shape: ImageShape | None = None,
) -> TrainingCost:
    """Return the cost of a training step, counted on a step of one image and one of two.

    Args:
        model: the model.
        objective: from images to losses.
        optimizer: the clients' optimiser, whose state takes memory.
        work: batches of a client.
        data: gives the shape of the images and the number of subtasks.
        client: the client half of the algorithm, whose slots take memory.
        extra_loss: a further loss of every step, which does not depend on the number of images.
        image_shape: shape of the original images where `data` has features in their place; without it their FLOPs are given as 0.
    """
    dtype = next(model.parameters()).dtype

    def loss(module: nn.Module, images: int) -> Tensor:
        assert isinstance(module, MultiTaskModel)
        pairs = torch.ones(images, data.num_tasks, dtype=torch.bool)
        valid = torch.ones(images, dtype=torch.bool)
        labels = torch.ones(data.num_tasks, dtype=dtype)
        module.set_step(torch.zeros(len(module.dropouts), 2, dtype=torch.int32), valid)
        inputs = torch.zeros(images, *data.image_shape, dtype=dtype)
        counts = TaskCounts(labels, labels, torch.zeros((), dtype=dtype))
        total = objective.losses(module, inputs, pairs, pairs, valid, counts).tasks.sum()
        return total if extra_loss is None else total + extra_loss(module)

    params = {name: torch.empty_like(value, device="meta") for name, value in model.params().items()}
    state = optimizer.init(params)

    def state_bytes(assignment: Tensor) -> Tensor:
        copies = 2 + len({*client.reads, *client.keeps} - {STEPS})
        return copies * client_bytes(params, assignment) + client_bytes(state, assignment)

    features = isinstance(model.trunk, Trunk) and model.trunk.passed_over > 0
    shape = image_shape if features else data.image_shape
    return TrainingCost(
        step=count_step(model, loss),
        image=0 if shape is None else image_flops(model, shape, mirror=objective.mirror),
        parameters=sum(value.numel() for value in params.values()),
        state_bytes=state_bytes,
        buffers=tree.num_bytes(dict(model.named_buffers())),
        batch_size=work.batch_size,
        passes=client.passes,
    )


def client_workload(
    cost: TrainingCost,
    params: Params,
    *,
    layout: Layout,
    work: LocalWork,
    data: FederatedData,
    slots_down: int = 1,
    slots_up: int = 1,
) -> Workload:
    """Return the cost of a round for each client.

    Args:
        cost: of a training step.
        params: parameters of the model.
        layout: which of them stay on the clients.
        work: batches and local steps of a client in a round.
        data: the federation's data.
        slots_down: how often the parameters' bytes are sent to a client.
        slots_up: how often it sends them.
    """
    sizes = data.clients.sizes
    flops = {size: cost.passes * cost.step.training(work.num_samples(size), steps=work.num_steps(size)) for size in set(sizes)}
    sent = client_bytes(layout.sent(params), data.assignment).double()
    return Workload(
        flops=torch.tensor([flops[size] for size in sizes], dtype=torch.float64),
        bytes_down=slots_down * sent,
        bytes_up=slots_up * sent,
        memory=cost.memory(data.assignment, torch.tensor(sizes)),
    )
