"""What is right is said by torch's own layers: BatchNorm in evaluation for `frozen`, in training on the valid images for `local`."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchvision.models import ResNet, resnet18

from mtl.base.types import Params
from mtl.models.norm import replace_batch_norm

LAYERS: list[tuple[Callable[..., nn.Module], tuple[int, ...]]] = [
    (nn.BatchNorm1d, (5, 3)),
    (nn.BatchNorm1d, (5, 3, 4)),
    (nn.BatchNorm2d, (5, 3, 4, 2)),
    (nn.BatchNorm3d, (5, 3, 2, 3, 2)),
]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and running statistics away from the ones and zeros they start with, in float64."""
    rng = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.ndim == 1:
                value.copy_(torch.rand(value.shape, generator=rng, dtype=torch.float64) + 0.5)
    return model


def replaced(model: nn.Module, norm: str) -> nn.Module:
    return replace_batch_norm(copy.deepcopy(model), norm)


def with_valid(model: nn.Module, valid: Tensor) -> Params:
    """What a call is given to count the images of `valid` only."""
    return {name: valid for name, _ in model.named_buffers() if name.rpartition(".")[2] == "valid"}


def value_and_grads(model: nn.Module, inputs: Tensor, buffers: Params | None = None) -> list[Tensor]:
    """Output, and the gradients of the inputs and all parameters under an uneven loss."""
    inputs = inputs.clone().requires_grad_()
    outputs = functional_call(model, buffers or {}, (inputs,))
    loss = (outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum()
    return [outputs, *torch.autograd.grad(loss, [inputs, *model.parameters()])]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_frozen_is_batch_norm_in_evaluation(
    layer: Callable[..., nn.Module], shape: tuple[int, ...], options: dict[str, float], training: bool
) -> None:
    batch_norm = randomise(layer(3, **options)).eval()
    frozen = replaced(batch_norm, "frozen").train(training)
    inputs = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(value_and_grads(frozen, inputs), value_and_grads(batch_norm, inputs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_local_is_batch_norm_that_tracks_nothing(
    layer: Callable[..., nn.Module], shape: tuple[int, ...], options: dict[str, float], training: bool
) -> None:
    batch_norm = randomise(layer(3, track_running_stats=False, **options))
    local = replaced(batch_norm, "local").train(training)
    inputs = torch.randn(shape, dtype=torch.float64) + 2
    torch.testing.assert_close(value_and_grads(local, inputs), value_and_grads(batch_norm, inputs))
    all_valid = with_valid(local, torch.ones(5))
    torch.testing.assert_close(value_and_grads(local, inputs, all_valid), value_and_grads(batch_norm, inputs))


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_padding_has_no_influence_even_where_it_is_not_finite(layer: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    batch_norm = randomise(layer(3))
    local = replaced(batch_norm, "local")
    valid = torch.tensor([True, False, True, True, False])
    inputs = torch.randn(shape, dtype=torch.float64)
    expected = batch_norm(inputs[valid])
    weights = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weights).sum(), list(batch_norm.parameters()))
    inputs[1], inputs[4] = float("nan"), float("inf")
    outputs = functional_call(local, with_valid(local, valid), (inputs,))
    torch.testing.assert_close(outputs[valid], expected)
    bias = torch.as_tensor(local.bias).view(-1, *[1] * (len(shape) - 2))
    assert torch.equal(outputs[~valid], bias.expand_as(outputs[~valid]))
    grads = torch.autograd.grad((outputs[valid] * weights).sum(), list(local.parameters()))
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("number", [0, 1])
def test_local_is_finite_with_one_image_of_one_place_and_with_none(number: int) -> None:
    local = replaced(randomise(nn.BatchNorm2d(3)), "local")
    inputs = 1e3 * torch.randn(4, 3, 1, 1, dtype=torch.float64)
    outputs, *grads = value_and_grads(local, inputs, with_valid(local, torch.arange(4) < number))
    assert torch.equal(outputs, torch.as_tensor(local.bias).view(1, 3, 1, 1).expand(4, 3, 1, 1))
    assert all(bool(value.isfinite().all()) for value in grads)


def half_resnet(**options: Any) -> ResNet:
    """torchvision's ResNet-18 without the last two of its four stages, which are nearly all of its parameters."""
    model = resnet18(weights=None, num_classes=2, **options)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 2)
    return model


def grouped_resnet(start: nn.Module) -> nn.Module:
    """The same built by torchvision with 32 groups, and the parameters of one with BatchNorm."""
    model = half_resnet(norm_layer=lambda channels: nn.GroupNorm(32, channels)).double()
    names = model.state_dict().keys()
    model.load_state_dict({name: value for name, value in start.state_dict().items() if name in names})
    return model


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_each_client_of_a_resnet_under_vmap_trains_as_one_with_torchs_own_layers(norm: str) -> None:
    torch.manual_seed(0)
    start = randomise(half_resnet())
    model = replaced(start, norm)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())

    params = {name: torch.stack([value.detach() * (1 + 0.1 * k) for k in range(3)]) for name, value in model.named_parameters()}
    buffers = {name: value.expand(3, *value.shape) for name, value in model.named_buffers()}
    valid = torch.tensor([[True] * 4, [True, True, False, True], [False, True, True, False]])
    buffers |= with_valid(model, valid)
    inputs = torch.randn(3, 4, 3, 24, 24, dtype=torch.float64)

    def loss(params: Params, buffers: Params, inputs: Tensor, valid: Tensor) -> Tensor:
        logits = functional_call(model, (params, buffers), (inputs,))
        return torch.where(valid[:, None], logits, 0).square().sum()

    result = vmap(grad(loss))(params, buffers, inputs, valid)

    reference = grouped_resnet(start) if norm == "group" else start.train(norm == "local")
    for k in range(3):
        client_model = copy.deepcopy(reference)
        client_model.load_state_dict({name: value[k] for name, value in params.items()}, strict=False)
        expected = torch.autograd.grad(client_model(inputs[k][valid[k]]).square().sum(), list(client_model.parameters()))
        for (name, _), value in zip(client_model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(result[name][k], value, rtol=1e-6, atol=1e-8, msg=name)


def test_training_moves_the_weights_and_leaves_the_statistics() -> None:
    frozen = replaced(nn.Sequential(nn.Conv2d(1, 4, 3), randomise(nn.BatchNorm2d(4)).float(), nn.ReLU()), "frozen")
    before = copy.deepcopy(frozen.state_dict())
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        frozen(torch.randn(2, 1, 5, 5)).square().sum().backward()
        optimizer.step()
    unchanged = {name for name, value in frozen.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged == {"1.running_mean", "1.running_var"}


def test_local_has_no_state_but_its_parameters() -> None:
    assert set(replaced(nn.BatchNorm2d(3), "local").state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("layer", "groups"),
    [
        (nn.BatchNorm2d, {1: 1, 2: 1, 3: 1, 7: 1, 9: 3, 12: 6, 33: 11, 48: 24, 62: 31, 64: 32, 74: 2, 96: 32, 100: 25, 512: 32}),
        (nn.BatchNorm3d, {15: 5, 64: 32}),
        (nn.BatchNorm1d, {1: 1, 24: 1, 32: 2, 51: 3, 100: 5, 512: 32}),
    ],
)
def test_groups_divide_the_channels(layer: type[nn.Module], groups: dict[int, int]) -> None:
    for channels, expected in groups.items():
        result = replaced(layer(channels), "group")
        assert isinstance(result, nn.GroupNorm)
        assert (result.num_groups, result.num_channels) == (expected, channels)


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
@pytest.mark.parametrize("affine", [True, False])
def test_the_affine_part_is_taken_over(norm: str, affine: bool) -> None:
    batch_norm = nn.BatchNorm2d(6, eps=0.25, affine=affine)
    layer = replace_batch_norm(batch_norm, norm)
    assert layer.eps == 0.25
    assert layer.weight is batch_norm.weight
    assert layer.bias is batch_norm.bias


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_a_layer_used_in_two_places_stays_one_layer(norm: str) -> None:
    shared = nn.BatchNorm1d(4)
    trunk = nn.Sequential(shared, nn.Sequential(nn.Linear(4, 4), shared))
    assert replace_batch_norm(trunk, norm) is trunk
    assert trunk[0] is trunk[1][1]
    assert trunk[0] is not shared


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_channels_last_stays_so_and_changes_nothing(norm: str) -> None:
    layer = replaced(randomise(nn.BatchNorm2d(8)), norm)
    buffers = with_valid(layer, torch.tensor([True, True, True, False]))
    inputs = torch.randn(12, 8, 5, 3, dtype=torch.float64)
    expected = torch.stack([functional_call(layer, buffers, (images,)) for images in inputs.split(4)])

    inputs = inputs.to(memory_format=torch.channels_last)
    outputs = functional_call(layer, buffers, (inputs[:4],))
    assert outputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs, expected[0])
    stacked = vmap(lambda images: functional_call(layer, buffers, (images,)))(inputs.unflatten(0, (3, 4)))
    torch.testing.assert_close(stacked, expected)


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_statistics_of_bfloat16_features_have_single_precision(norm: str) -> None:
    layer = replaced(nn.BatchNorm2d(8), norm)
    conv = nn.Conv2d(8, 8, 1)
    inputs = torch.randn(64, 8, 8, 8) + 20
    with torch.autocast("cpu", torch.bfloat16):
        features = conv(inputs)
        outputs = layer(features)
    assert features.dtype == torch.bfloat16
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.double(), layer.double()(features.double()), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_the_layers_compile_into_one_graph(norm: str) -> None:
    layer = replaced(nn.BatchNorm2d(4), norm)
    inputs = torch.randn(3, 4, 2, 2)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), layer(inputs))


def test_refusal_names_the_layer_and_the_choices() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match=r"BatchNorm \(1\.1\).* norm=group, norm=frozen or norm=local"):
        replace_batch_norm(trunk)
    with pytest.raises(ValueError, match=r"BatchNorm \(BatchNorm3d\)"):
        replace_batch_norm(nn.BatchNorm3d(2))
    with pytest.raises(ValueError, match="norm must be one of refuse, group, frozen, local, got layer"):
        replace_batch_norm(trunk, "layer")
    with pytest.raises(ValueError, match=r"norm=frozen needs the running statistics .* got BatchNorm2d\(2, .*False"):
        replace_batch_norm(nn.BatchNorm2d(2, track_running_stats=False), "frozen")


def test_a_trunk_without_batch_norm_is_left_as_it_is() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4))
    for norm in ("refuse", "group", "frozen", "local"):
        layers = list(trunk.modules())
        assert replace_batch_norm(trunk, norm) is trunk
        assert list(trunk.modules()) == layers
