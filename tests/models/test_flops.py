"""What a step costs, against counts by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mtl.data.client_batches import LocalWork
from mtl.data.transforms import Augmentation, Normalise
from mtl.edge.device_model import DeviceModel
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.objective import Objective
from mtl.federation.workload import TrainingCost, training_cost
from mtl.losses.bce import BCE
from mtl.losses.ldam import LDAM
from mtl.losses.sphereface2 import SphereFace2
from mtl.models import cnn, heads
from mtl.models.cnn import ImageShape, Trunk
from mtl.models.flops import count_forward, count_once, count_step, image_flops
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from tests.conftest import make_federation

OBJECTIVE = Objective(Augmentation(flip=False), Normalise())


def cost_of(trunk: Trunk, *, batch: int = 4, size: int = 16, cosine: bool = True, client: LocalSGD | None = None) -> TrainingCost:
    data = make_federation(size=size)
    kind, loss = (heads.CosineHeads, SphereFace2(4)) if cosine else (heads.LinearHeads, BCE(4))
    model = MultiTaskModel(trunk, kind(trunk.width, 4), loss)
    return training_cost(model, OBJECTIVE, client or LocalSGD(), LocalWork(batch_size=batch), data)


def test_the_flops_of_the_small_cnn_are_those_counted_by_hand() -> None:
    step = cost_of(cnn.small_cnn((1, 16, 16), channels=(8, 16), width=8)).step
    first = 8 * 8 * 8 * 9 * 1  # places x channels out x 3x3 x channels in
    rest = 4 * 4 * 16 * 9 * 8 + (4 * 4 * 16) * 8 + 8 * 4  # second convolution, embedding, heads
    assert step.forward(1) == 2 * (first + rest)
    # Backward: to the weights and to the inputs, but not to the images.
    assert step.training(1) == 2 * (2 * first + 3 * rest)
    assert step.training(7) == 7 * step.training(1)


def test_the_flops_of_convolutions_by_channel_are_those_counted_by_hand() -> None:
    step = cost_of(cnn.separable_cnn((1, 16, 16), channels=(8, 16), width=8)).step
    first = 8 * 8 * 8 * 9
    rest = 8 * 8 * 8 * 9 + 8 * 8 * 16 * 8 + 8 * 8 * 16 * 8 + 8 * 4  # each channel alone, across them, embedding, heads
    assert step.forward(1) == 2 * (first + rest)
    assert step.training(1) == 2 * (2 * first + 3 * rest)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_flops_of_an_image_are_those_of_the_graph_on_a_device(mirror: bool) -> None:
    trunk = cnn.small_cnn((1, 16, 16), channels=(8, 16), width=8)
    model = MultiTaskModel(trunk, heads.CosineHeads(8, 4), SphereFace2(4))
    by_hand = 2 * (8 * 8 * 8 * 9 * 1 + 4 * 4 * 16 * 9 * 8 + (4 * 4 * 16) * 8 + 8 * 4)
    views = 2 if mirror else 1
    assert image_flops(model, (1, 16, 16), mirror=mirror) == views * by_hand
    device = DeviceModel(model, Normalise(), mirror=mirror)
    assert count_forward(device, (1, 16, 16), torch.uint8) == views * by_hand
    objective = replace(OBJECTIVE, mirror=mirror)
    cost = training_cost(model, objective, LocalSGD(), LocalWork(batch_size=4), make_federation(size=16))
    assert cost.summary(4)["flops_forward"] == views * by_hand


def test_layers_that_training_passes_over_are_there_on_a_device() -> None:
    trunk = cnn.small_cnn((1, 16, 16), channels=(8, 16), width=8)
    model = MultiTaskModel(trunk, heads.CosineHeads(8, 4), SphereFace2(4))
    whole = image_flops(model, (1, 16, 16), mirror=False)
    trunk.passed_over = 3
    assert image_flops(model, (1, 16, 16), mirror=False) == whole
    assert trunk.passed_over == 3


def test_saved_bytes_by_hand() -> None:
    """Convolution 1 -> 2 channels, ReLU, linear 32 -> 3, sum of squares of four images of 4x4."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 3))

    def loss(module: nn.Module, images: int) -> Tensor:
        return module(torch.zeros(images, 1, 4, 4)).square().sum()

    step = count_step(model, loss)
    # The batch, what comes out of ReLU (in place; the input of the linear layer is a view of it), and the outputs to be squared.
    assert step.saved(4) == 4 * 4 * (16 + 32 + 3)
    assert step.saved(0) == 0


def local_norm(image_shape: ImageShape) -> Trunk:
    layers = [nn.Conv2d(image_shape[0], 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 8)]
    return Trunk(replace_batch_norm(nn.Sequential(*layers), "local"), 8)


@pytest.mark.parametrize(
    "trunk",
    [
        lambda shape: cnn.small_cnn(shape, channels=(8,), width=8),
        lambda shape: cnn.classic_cnn(shape, channels=(4,), width=8),
        lambda shape: cnn.separable_cnn(shape, channels=(8, 8), width=8),
        lambda shape: cnn.lenet(shape, widths=(8,)),
        cnn.flat,
        local_norm,
    ],
    ids=["small", "classic", "separable", "lenet", "flat", "local norm"],
)
def test_a_step_costs_in_proportion_to_its_images(trunk: Callable[[ImageShape], Trunk]) -> None:
    model = MultiTaskModel(trunk((1, 16, 16)), heads.LinearHeads(8 if trunk is not cnn.flat else 256, 4), BCE(4))

    def loss(module: nn.Module, images: int) -> Tensor:
        module.set_step(torch.zeros(len(module.dropouts), 2, dtype=torch.int32), torch.ones(images, dtype=torch.bool))
        return module(torch.rand(images, 1, 16, 16)).square().sum()

    step = count_step(model, loss)
    assert (step.forward(7), step.training(7), step.saved(7)) == count_once(model, loss, 7)
    assert step.training(1) > step.forward(1) > 0


def test_the_memory_of_a_step_is_by_hand() -> None:
    data = make_federation(size=16)
    trunk = cnn.flat(data.image_shape)
    model = MultiTaskModel(trunk, heads.LinearHeads(trunk.width, 4), LDAM(4))
    for momentum, copies in ((0.0, 2), (0.9, 3)):
        cost = training_cost(model, OBJECTIVE, LocalSGD(momentum=momentum), LocalWork(batch_size=6), data)
        assert cost.parameters == 4 * 256 + 4
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        two, small = cost.memory(torch.tensor([[True, True, False, False], [True] * 4]), torch.tensor([20, 3])).tolist()
        assert two == copies * 4 * 2 * (256 + 1) + buffers + cost.step.saved(6)
        assert small == copies * 4 * 4 * (256 + 1) + buffers + cost.step.saved(3)
    assert cost.step.saved(6) > 6 * 256 * 4  # the images as the heads see them, and more


def test_counting_leaves_the_model_as_it_is() -> None:
    data = make_federation(size=16)
    trunk = cnn.classic_cnn(data.image_shape, channels=(4,), width=8)
    model = MultiTaskModel(trunk, heads.LinearHeads(trunk.width, 4), BCE(4)).eval()
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    training_cost(model, OBJECTIVE, LocalSGD(), LocalWork(), data)
    assert not model.training
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
