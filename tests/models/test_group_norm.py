"""The written-out GroupNorm against torch's own, alone and stacked, and that every trunk has it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from mtl.models import group_norm
from mtl.models.centre import CentreHead
from mtl.models.cnn import separable_cnn, small_cnn
from mtl.models.group_norm import GroupNorm, normalise_groups
from mtl.models.norm import replace_batch_norm
from mtl.models.sphereface import sphereface_cnn


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 5), (3, 8, 5, 7), (0, 8, 5, 7)])
@pytest.mark.parametrize("affine", [True, False])
def test_written_out_it_is_torchs_own(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    features = 5 * torch.randn(shape, dtype=torch.float64) + 3
    weight, bias = (torch.randn(8, dtype=torch.float64) if affine else None for _ in range(2))
    torch.testing.assert_close(normalise_groups(features, 4, weight, bias, 0.1), F.group_norm(features, 4, weight, bias, 0.1))


def test_one_image_by_hand() -> None:
    """Groups (1, 3) and (2, 2): means 2 and 2, variances 1 and 0."""
    result = normalise_groups(
        torch.tensor([[1.0, 3.0, 2.0, 2.0]]), 2, torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.0, 1, 2, 3]), 3.0
    )
    assert result.tolist() == [[-0.5, 2.0, 2.0, 3.0]]


def channels_last(maps: Tensor) -> Tensor:
    """maps: [K, B, c, H, W], each client's in the channels-last format."""
    return maps.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, maps.shape[:2])


@pytest.fixture(params=[False, True])
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torch's own operation is made to refuse everything, as that of torch 2.11 does channels-last maps under vmap."""

    def refuse(*arguments: object) -> Tensor:
        raise RuntimeError("NYI: querying is_contiguous inside of vmap for memory_format other than torch.contiguous_format")

    if request.param:
        monkeypatch.setattr(group_norm, "STACKS", False)
        monkeypatch.setattr(nn.GroupNorm, "forward", refuse)
    return bool(request.param)


@pytest.mark.parametrize("form", [torch.clone, channels_last])
def test_each_of_a_stack_is_as_one_alone(refusing: bool, form: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    maps = form(torch.randn(4, 3, 8, 5, 5, dtype=torch.float64))
    layer = GroupNorm(2, 8).double()
    weight = torch.randn(4, 8, dtype=torch.float64)

    def loss(maps: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (maps,)).pow(3).sum()

    result = vmap(grad(loss, argnums=(0, 1)))(maps, weight)
    for k in range(4):
        image, scale = maps[k].clone().requires_grad_(), weight[k].clone().requires_grad_()
        expected = torch.autograd.grad(F.group_norm(image, 2, scale, layer.bias).pow(3).sum(), (image, scale))
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one[k], other)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norm, "STACKS", False)
    with pytest.raises(RuntimeError, match="size"):
        GroupNorm(2, 8)(torch.zeros(3, 6, 5, 5))


def test_channels_last_stays_channels_last(refusing: bool) -> None:
    maps = torch.randn(3, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    assert GroupNorm(2, 8)(maps).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "model",
    [
        small_cnn((1, 16, 16)),
        separable_cnn((1, 16, 16)),
        sphereface_cnn((1, 32, 32), depth=10),
        CentreHead(8),
        replace_batch_norm(nn.Sequential(nn.BatchNorm2d(8)), "group"),
    ],
)
def test_every_group_norm_of_a_trunk_can_be_stacked(model: nn.Module) -> None:
    norms = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert norms
    assert all(type(layer) is GroupNorm for layer in norms)
