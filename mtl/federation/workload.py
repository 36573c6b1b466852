"""What a round asks of each client, known before training: FLOPs, bytes on the link, memory.

FLOPs and saved activations are those of the step as it is simulated, with all heads in single precision: a device could leave out the
heads that it does not train. The memory of a step is modelled as

    parameters + gradients + state of the client algorithm + buffers + saved activations of the largest batch

with the rows of the client's own heads, and nothing for the framework, its workspaces or the stored images.
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
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.layout import Layout
from mtl.federation.message import client_bytes
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.cnn import ImageShape, Trunk
from mtl.models.flops import StepCost, count_step, image_flops
from mtl.models.multi_task_model import MultiTaskModel


@dataclass(frozen=True)
class TrainingCost:
    """step: of a client; image: FLOPs of an image, see `models.flops`; parameters: their number; held: what it keeps from step to step
    but for buffers, [C, T] tasks to bytes [C]; buffers: bytes; batch_size: of the work.
    """

    step: StepCost
    image: int
    parameters: int
    held: Callable[[Tensor], Tensor]
    buffers: int
    batch_size: int

    def memory(self, assignment: Tensor, images: Tensor) -> Tensor:
        """Bytes that the training step of each client needs, float64 [C]. assignment: bool [C, T]; images: that each holds, [C]."""
        batches = images.clamp(max=self.batch_size)
        saved = self.step.saved.fixed + self.step.saved.per_image * batches
        return (self.held(assignment) + self.buffers + saved).double()

    def summary(self, num_tasks: int) -> dict[str, float]:
        """flops_forward: of an image; flops_training: of a training step for one image of a full batch; the rest for a full batch with all
        heads.
        """
        full = torch.tensor([self.batch_size])
        return {
            "parameters": self.parameters,
            "flops_forward": self.image,
            "flops_training": self.step.training(self.batch_size) / self.batch_size,
            "modelled_activation_bytes": self.step.saved(self.batch_size),
            "modelled_memory_bytes": float(self.memory(torch.ones(1, num_tasks, dtype=torch.bool), full)),
        }


def training_cost(
    model: MultiTaskModel,
    objective: Objective,
    algorithm: ClientAlgorithm,
    work: LocalWork,
    data: FederatedData,
    *,
    beside: Callable[[MultiTaskModel], Tensor] | None = None,
    image_shape: ImageShape | None = None,
) -> TrainingCost:
    """Counted on a step of one image and one of two. beside: a loss that every step has besides, however many its images; image_shape:
    of the images where `data` hold features in their place; without it the FLOPs of an image are not counted there, and are 0.
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
        return total if beside is None else total + beside(module)

    params = {name: torch.empty_like(value, device="meta") for name, value in model.params().items()}
    state = algorithm.init(params)

    def held(assignment: Tensor) -> Tensor:
        return 2 * client_bytes(params, assignment) + client_bytes(state, assignment)

    features = isinstance(model.trunk, Trunk) and model.trunk.passed_over > 0
    shape = image_shape if features else data.image_shape
    return TrainingCost(
        step=count_step(model, loss),
        image=0 if shape is None else image_flops(model, shape, mirror=objective.mirror),
        parameters=sum(value.numel() for value in params.values()),
        held=held,
        buffers=tree.num_bytes(dict(model.named_buffers())),
        batch_size=work.batch_size,
    )


def client_workload(cost: TrainingCost, params: Params, *, layout: Layout, work: LocalWork, data: FederatedData) -> Workload:
    """A round of each client. params: of the model; layout: what of it stays on the clients."""
    sizes = data.clients.sizes
    flops = {size: cost.step.training(work.num_samples(size), steps=work.num_steps(size)) for size in set(sizes)}
    sent = client_bytes(layout.sent(params), data.assignment).double()
    return Workload(
        flops=torch.tensor([flops[size] for size in sizes], dtype=torch.float64),
        bytes_down=sent,
        bytes_up=sent,
        memory=cost.memory(data.assignment, torch.tensor(sizes)),
    )
