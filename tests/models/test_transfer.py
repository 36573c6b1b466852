import copy

import pytest
import torch
from torch import nn

from mtl.losses.bce import BCE
from mtl.losses.sphereface2 import SphereFace2
from mtl.models import cnn, heads, trunks
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from mtl.models.transfer import Transfer, frozen_features, stages


def small() -> MultiTaskModel:
    torch.manual_seed(0)
    trunk = cnn.small_cnn((1, 16, 16), channels=(8, 16), width=8)
    return MultiTaskModel(trunk, heads.CosineHeads(8, 3), SphereFace2(3))


def dropping() -> MultiTaskModel:
    torch.manual_seed(0)
    trunk = cnn.classic_cnn((1, 16, 16), channels=(4, 8), width=8)
    return MultiTaskModel(trunk, heads.LinearHeads(8, 3), BCE(3))


def test_stages_are_layers_with_what_follows_them() -> None:
    trunk = cnn.small_cnn((1, 16, 16), channels=(8, 16), width=8)
    paths = [[path.removeprefix("features.") for path, _ in stage] for stage in stages(trunk)]
    assert paths == [["0", "1", "2"], ["3", "4", "5", "6"], ["7"]]
    resnet = stages(trunks.resnet((3, 32, 32), width=8))
    firsts = [stage[0][0].removeprefix("features.") for stage in resnet]
    assert firsts == ["conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2)), "embedding"]
    assert stages(cnn.flat((1, 4, 4))) == []


@pytest.mark.parametrize(("trained", "expected"), [(None, 3), (3, 3), (2, 2), (1, 1), (0, 0)])
def test_frozen_stages_are_constants_that_compute_the_same(trained: int | None, expected: int) -> None:
    model = small()
    images = torch.rand(2, 1, 16, 16)
    before, names = model(images), {*model.state_dict()}
    Transfer(trained=trained).freeze(model)
    assert torch.equal(model(images), before)
    assert {*model.state_dict()} == names
    trained_layers = {name.split(".")[2] for name in model.params() if name.startswith("trunk.")}
    assert trained_layers == {*["0", "1", "3", "4", "7"][{3: 0, 2: 2, 1: 4, 0: 5}[expected] :]}
    assert {"heads.weight", "loss.bias"} <= {*model.params()}


def test_a_frozen_model_keeps_its_values_through_copy_device_and_state() -> None:
    model = small()
    other = small()
    Transfer(trained=0).freeze(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1
    model.load_state_dict(other.state_dict())
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(copy.deepcopy(model).double().float()(images), other(images))


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_the_rest_of_the_trunk_on_cached_features_is_the_whole_trunk(trained: int) -> None:
    for make in (small, dropping):
        model = make()
        count = Transfer(trained=trained).freeze(model)
        model.eval()
        images = torch.rand(3, 1, 16, 16)
        whole = model(images)
        assert isinstance(model.trunk, Trunk)
        features = frozen_features(model.trunk, count, images)
        assert features.dim() == 4
        model.trunk.passed_over = count
        assert torch.allclose(model(features), whole)


def test_frozen_dropout_is_left_out() -> None:
    model = dropping()
    Transfer(trained=1).freeze(model)  # the last linear layer, and the dropout after it
    layers = [layer.p for layer in model.modules() if type(layer).__name__ == "KeyedDropout"]
    assert layers == [0.0, 0.5]


def test_learning_rates_fall_towards_the_input() -> None:
    model = small()
    scales = Transfer(decay=0.5).scales(model)
    assert scales["trunk.features.0.weight"] == scales["trunk.features.1.bias"] == 0.25
    assert scales["trunk.features.3.weight"] == 0.5
    assert scales["trunk.features.7.bias"] == 1
    assert not any(name.startswith(("heads", "loss")) for name in scales)
    assert Transfer().scales(model) == {}


def test_stages_join_from_the_top() -> None:
    resting = Transfer(unfreeze_every=2).schedule(small())
    layers = [sorted({name.split(".")[2] for name in resting(round)}) for round in range(8)]
    assert layers == [["0", "1", "3", "4", "7"]] * 2 + [["0", "1", "3", "4"]] * 2 + [["0", "1"]] * 2 + [[]] * 2
    assert Transfer().schedule(small())(0) == frozenset()


def test_what_cannot_be_frozen_is_refused() -> None:
    trunk = Trunk(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()), 2)
    local = MultiTaskModel(replace_batch_norm(trunk, "local"), heads.LinearHeads(2, 2), BCE(2))
    with pytest.raises(ValueError, match=r"norm=local has no statistics to freeze in trunk.features.1; use norm=frozen"):
        Transfer(trained=0).freeze(local)
    codes = MultiTaskModel(cnn.small_cnn((1, 8, 8), channels=(8,), width=4), heads.FixedCodes(4, 2), BCE(2))
    with pytest.raises(ValueError, match=r"transfer.unfreeze_every begins with the heads alone, and these have no parameters"):
        Transfer(unfreeze_every=1).freeze(codes)
    with pytest.raises(ValueError, match=r"transfer.trained=0 leaves nothing to train"):
        Transfer(trained=0).freeze(codes)
    with pytest.raises(ValueError, match=r"transfer.trained must be at most 3, the stages of the trunk, got 4"):
        Transfer(trained=4).freeze(small())
    for options, message in (
        ({"trained": -1}, "transfer.trained must be null or >= 0, got -1"),
        ({"decay": 0.0}, r"transfer.decay must be in \(0, 1\], got 0.0"),
        ({"unfreeze_every": 0}, "transfer.unfreeze_every must be null or >= 1, got 0"),
        ({"cache": True}, "transfer.cache=true needs transfer.trained"),
        ({"distance": -1.0}, "transfer.distance must be >= 0, got -1.0"),
        ({"angle": 1.0, "trained": 0}, "transfer.angle keep the relations of what is trained: transfer.trained must not be 0"),
        ({"ratio": 0.0}, "transfer.ratio must be > 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Transfer(**options)  # type: ignore[arg-type]
