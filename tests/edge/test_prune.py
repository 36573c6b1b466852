"""Fewer weights and fewer channels: how many go, which, and what stays the same."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtl.edge.prune import Pruning, cut_channels, prunable, take_shapes, zero_smallest
from mtl.losses.bce import BCE
from mtl.models.cnn import Trunk, classic_cnn, flat, lenet, separable_cnn, small_cnn
from mtl.models.flops import count_forward, num_parameters
from mtl.models.heads import LinearHeads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from mtl.run.load import load_run
from mtl.run.train import train
from tests.edge.conftest import Train
from tests.run.test_train import small

SHAPE = (1, 16, 16)


def whole(trunk: Trunk) -> MultiTaskModel:
    return MultiTaskModel(trunk, LinearHeads(trunk.width, 3), BCE(3)).eval()


def test_the_ratio_grows_as_a_cube() -> None:
    pruning = Pruning("weights", ratio=0.8, begin=0.2, end=0.6)
    # s(r) = .8 (1 - (1 - (r - .2) / .4)^3), by hand
    for progress, expected in ((0.0, 0.0), (0.19, 0.0), (0.3, 0.8 * (1 - 0.75**3)), (0.4, 0.7), (0.6, 0.8), (1.0, 0.8)):
        assert pruning.ratio_at(progress) == pytest.approx(expected)
    assert Pruning("weights", ratio=0.8, begin=0.0, end=0.0).ratio_at(0.0) == 0.8


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.floats(0, 0.95), st.sampled_from(["global", "layer"]))
def test_as_many_go_as_were_asked_for_and_they_are_the_smallest(sizes: list[int], ratio: float, scope: str) -> None:
    rng = torch.Generator().manual_seed(0)
    weights = {f"w{i}": torch.randn(size, 2, generator=rng) for i, size in enumerate(sizes)}
    before = {name: weight.clone() for name, weight in weights.items()}
    try:
        masks = zero_smallest(weights, ratio, scope=scope)
    except ValueError as error:
        assert "would leave nothing of" in str(error)  # noqa: PT017
        assert all(torch.equal(before[name], weights[name]) for name in weights)
        return
    groups = [list(weights)] if scope == "global" else [[name] for name in weights]
    for group in groups:
        gone = torch.cat([before[name].abs()[~masks[name]] for name in group])
        remaining = torch.cat([before[name].abs()[masks[name]] for name in group])
        assert len(gone) == round(ratio * (len(gone) + len(remaining)))
        assert not len(gone) or gone.max() <= remaining.min()
        assert all(torch.equal(weights[name], before[name] * masks[name]) for name in group)


def test_a_layer_that_would_be_empty_is_named() -> None:
    weights = {"trunk.small": torch.full((2, 2), 0.01), "trunk.large": torch.ones(4, 4)}
    with pytest.raises(ValueError, match=r"prune.ratio=0.5 would leave nothing of trunk.small, \(2, 2\)"):
        zero_smallest(weights, 0.5, scope="global")
    assert float(weights["trunk.small"].sum()) == pytest.approx(0.04)
    with pytest.raises(ValueError, match=r"prune.ratio=0.99 would leave no channel of trunk.features.[03], which has (6|16)"):
        cut_channels(whole(lenet((1, 28, 28))), (1, 28, 28), 0.99, scope="layer")


def test_cutting_channels_that_give_nothing_changes_nothing() -> None:
    model = whole(classic_cnn(SHAPE, channels=(8, 12), width=16))
    first, second = (layer for layer in model.trunk.modules() if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        for layer, scale, silent in ((first, 100, [0, 3, 5, 6]), (second, 10, [1, 2, 4, 7, 9, 11])):
            layer.weight *= scale  # so that nobody is as small by chance: the weights that read a channel count too
            layer.weight[silent] = 0
            assert layer.bias is not None
            layer.bias[silent] = 0
    images = torch.rand(2, *SHAPE)
    expected = model(images)
    cut_channels(model, SHAPE, 0.5, scope="layer")
    first, second = (layer for layer in model.trunk.modules() if isinstance(layer, nn.Conv2d))
    assert (first.weight.shape[0], second.weight.shape[0]) == (4, 6)
    largest = expected.abs().max()
    torch.testing.assert_close(model(images) / largest, expected / largest)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("make", [small_cnn, separable_cnn, classic_cnn], ids=lambda make: make.__name__)
def test_a_pruned_model_is_smaller_and_its_shapes_can_be_taken_again(make: type, scope: str) -> None:
    model, again = whole(make(SHAPE)), whole(make(SHAPE))
    before, flops = num_parameters(model), count_forward(model, SHAPE)
    cut_channels(model, SHAPE, 0.5, scope=scope)
    assert num_parameters(model) < 0.8 * before
    assert count_forward(model, SHAPE) < 0.8 * flops
    take_shapes(again, model.state_dict())
    again.load_state_dict(model.state_dict())
    images = torch.rand(3, *SHAPE)
    torch.testing.assert_close(again(images), model(images))
    assert model(images).shape == (3, 3)
    assert [str(layer) for layer in again.modules()] == [str(layer) for layer in model.modules()]


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_every_norm_that_takes_the_place_of_batch_norm_can_be_cut(norm: str) -> None:
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)
    )
    trunk = Trunk(features, 8)
    replace_batch_norm(trunk, norm)
    model = whole(trunk)
    cut_channels(model, SHAPE, 0.5, scope="layer")
    assert features[0].weight.shape[0] == 16  # the original is left
    assert model(torch.rand(2, *SHAPE)).shape == (2, 3)
    assert num_parameters(model.trunk) == 8 * 9 + 8 + 8 * 2 + 8 * 8 + 8


def test_a_trunk_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="cuts no channel of this trunk"):
        cut_channels(whole(flat(SHAPE)), SHAPE, 0.5, scope="layer")


@pytest.mark.parametrize("mode", ["centralised", "federated"])
def test_weights_stay_zero_while_the_others_are_trained(pictures: Path, tmp_path: Path, mode: str) -> None:
    config = small(pictures, f"mode={mode}", "prune=weights", "prune.ratio=0.7", "prune.end=0.5", "engine.backend=loop")
    train(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    for weight in prunable(run.model).values():
        assert int((weight == 0).sum()) == round(0.7 * weight.numel())


def test_a_pruned_run_goes_on_from_a_trained_one_and_can_be_loaded(trained: Train, tmp_path: Path) -> None:
    before = trained("mode=centralised", "trunk=classic_cnn", "trunk.channels=[4,8]", "trunk.width=8")
    config = load_run(before).config.copy()
    config.start, config.rounds = str(before), 2
    config.prune.kind, config.prune.ratio = "channels", 0.5
    train(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert [p.shape[0] for name, p in run.model.trunk.named_parameters() if name.endswith("weight")] == [2, 4, 8]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune=channels"], "prune.kind=channels needs start"),
        (["prune=weights", "keep=heads"], "prune.kind=weights prunes what travels"),
        (["prune=weights", "prune.ratio=1.0"], r"prune.ratio must be in \(0, 1\), got 1.0"),
        (["prune.kind=half"], "prune.kind must be one of nothing, weights, channels, got half"),
        (["prune=weights", "prune.begin=.8"], r"prune.begin and prune.end must be in order in \[0, 1\], got 0.8 and 0.5"),
        (["start=/nowhere"], "run directory must hold config.yaml, got /nowhere without one"),
    ],
)
def test_contradictory_pruning_is_refused(pictures: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        train(small(pictures, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
