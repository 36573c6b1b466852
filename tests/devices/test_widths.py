"""Narrower models as parts of one: which channels, what they compute, and whose they are."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtl.devices.fleet import Fleet, deal_out
from mtl.devices.widths import Level, Widths, narrow
from mtl.losses.bce import BCE
from mtl.models.cnn import ImageShape, Trunk, classic_cnn, flat, lenet, separable_cnn, small_cnn
from mtl.models.heads import LinearHeads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from mtl.models.trunks import resnet

SHAPE = (1, 16, 16)


def whole(trunk: Trunk) -> MultiTaskModel:
    return MultiTaskModel(trunk, LinearHeads(trunk.width, 3), BCE(3))


def two_linear(image_shape: ImageShape) -> Trunk:
    return Trunk(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), 2)


def test_the_leading_channels_by_hand() -> None:
    model = whole(two_linear((1, 2, 2)))
    level = narrow(model, (1, 2, 2), 0.5)
    # 3 of 6 hidden channels: the first three rows of the first layer, the first three columns of the second.
    assert {name: place.tolist() for name, place in level.index.items()} == {
        "trunk.features.1.weight": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
        "trunk.features.1.bias": [0, 1, 2],
        "trunk.features.3.weight": [[0, 1, 2], [6, 7, 8]],
    }
    images = torch.rand(5, 1, 2, 2)
    first, last = (layer for layer in model.trunk.modules() if isinstance(layer, nn.Linear))
    hidden = torch.relu(images.flatten(1) @ first.weight[:3].T + first.bias[:3])
    torch.testing.assert_close(level.model.trunk(images), 2 * hidden @ last.weight[:, :3].T + last.bias)
    unscaled = narrow(model, (1, 2, 2), 0.5, scale=False).model
    torch.testing.assert_close(unscaled.trunk(images), hidden @ last.weight[:, :3].T + last.bias)


@pytest.mark.parametrize("ratio", [0.5, 0.3])
@pytest.mark.parametrize("make", [small_cnn, separable_cnn, classic_cnn, lenet], ids=lambda make: make.__name__)
def test_a_level_computes_what_the_whole_does_without_the_other_channels(make: Callable[..., Trunk], ratio: float) -> None:
    shape = (1, 28, 28)
    model = whole(make(shape)).eval()
    level = narrow(model, shape, ratio, scale=False)
    small = level.model.params()
    assert level.model.trunk.width == model.trunk.width
    assert sum(map(torch.numel, small.values())) < 0.6 * sum(map(torch.numel, model.params().values()))
    # Rows of the other channels become zero: what they give is zero, but for their bias, which is zeroed as well.
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in level.index:
                mask = torch.zeros(value.numel(), dtype=torch.bool)
                mask[level.index[name].flatten()] = True
                torch.testing.assert_close(value.flatten()[level.index[name]], small[name], rtol=0, atol=0)
                value.mul_(mask.view_as(value))
    images = torch.rand(3, *shape)
    torch.testing.assert_close(level.model.eval()(images), model(images))


def test_a_group_is_normalised_as_in_the_whole() -> None:
    model = whole(small_cnn(SHAPE, channels=(16,), groups=4, width=8))
    level = narrow(model, SHAPE, 0.3)  # 4.8 channels, so two groups of four
    assert isinstance(model.trunk, Trunk)
    assert isinstance(level.model.trunk, Trunk)
    images = torch.rand(3, *SHAPE)
    parts = [images, images]
    for place in range(3):
        parts = [trunk.chain()[place][1](part) for trunk, part in zip((model.trunk, level.model.trunk), parts, strict=True)]
    assert parts[1].shape[1] == 8
    torch.testing.assert_close(parts[1], parts[0][:, :8])


@given(st.floats(0.05, 0.8), st.floats(0.05, 0.8))
@settings(max_examples=15, deadline=None)
def test_narrower_levels_lie_inside_wider_ones(one: float, other: float) -> None:
    model = whole(classic_cnn(SHAPE, channels=(5, 7), width=9))
    wide, slim = (narrow(model, SHAPE, ratio) for ratio in (max(one, other), min(one, other)))
    for name, place in wide.index.items():
        assert set(slim.index[name].flatten().tolist()) <= set(place.flatten().tolist())


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_channels_tied_to_the_features_stay_and_all_norms_can_be_cut(norm: str) -> None:
    trunk = resnet((3, 16, 16), small_images=True)
    replace_batch_norm(trunk, norm)
    model = whole(trunk)
    level = narrow(model, (3, 16, 16), 0.25)
    small = level.model.params()
    assert small["trunk.features.conv1.weight"].shape == (16, 3, 3, 3)
    assert small["trunk.features.layer4.1.conv1.weight"].shape == (128, 512, 3, 3)
    assert small["trunk.features.layer4.1.conv2.weight"].shape == (512, 128, 3, 3)
    assert level.model(torch.rand(2, 3, 16, 16)).shape == (2, 3)


def test_a_level_has_its_own_numbers_and_the_whole_is_left() -> None:
    model = whole(lenet((1, 28, 28)))
    before = {name: value.clone() for name, value in model.params().items()}
    level = narrow(model, (1, 28, 28), 0.5)
    with torch.no_grad():
        for parameter in level.model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.params().items())
    assert narrow(model, (1, 28, 28), 1.0) == Level(1.0, model, {})


def test_what_cannot_be_narrowed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"widths.levels=0.5 cuts no channel of this trunk"):
        narrow(whole(flat(SHAPE)), SHAPE, 0.5)
    with pytest.raises(ValueError, match=r"need architecture=hard_sharing, a model with one trunk, got Sequential"):
        narrow(MultiTaskModel(nn.Sequential(flat(SHAPE)), LinearHeads(256, 3), BCE(3)), SHAPE, 0.5)


def test_levels_are_dealt_out_like_devices() -> None:
    assert deal_out("widths.shares", [2, 3], 5, seed=3, purpose="widths").bincount().tolist() == [2, 3]
    drawn = deal_out("widths.shares", [0.2, 0.8, 0.0], 1000, seed=0, purpose="widths").bincount(minlength=3).tolist()
    assert drawn[2] == 0
    assert abs(drawn[0] - 200) < 50  # deviation 12.6
    for widths, message in (
        ({"levels": [0.5]}, r"widths.levels must fall from 1 to a number > 0, got \[0.5\]"),
        ({"levels": [1.0, 0.5, 0.5]}, r"must fall from 1"),
        ({"levels": [1.0, 0.0]}, r"must fall from 1"),
        (
            {"levels": [1.0, 0.5], "shares": [1.0]},
            r"widths.shares must be 2 numbers >= 0, one for each of widths.levels, got \[1.0\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Widths(**widths)
    with pytest.raises(ValueError, match=r"fleet.memory=shrink needs devices"):
        Fleet(memory="shrink")
