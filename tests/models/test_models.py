import pytest
import torch
from torch import nn

from mtl.federation.layout import is_head
from mtl.losses.bce import BCE
from mtl.models import cnn, heads
from mtl.models.multi_task_model import MultiTaskModel

TRUNKS = [cnn.small_cnn, cnn.classic_cnn, cnn.separable_cnn, cnn.lenet, cnn.flat]


@pytest.mark.parametrize("make", TRUNKS)
@pytest.mark.parametrize("shape", [(1, 56, 46), (3, 32, 32)])
def test_a_trunk_gives_features_of_its_width(make: object, shape: tuple[int, int, int]) -> None:
    trunk = make(shape)  # type: ignore[operator]
    assert trunk(torch.rand(2, *shape)).shape == (2, trunk.width)


def test_classic_cnn_has_the_published_number_of_parameters() -> None:
    trunk = cnn.classic_cnn((3, 32, 32))
    model = MultiTaskModel(trunk, heads.LinearHeads(trunk.width, 10), BCE(10))
    assert sum(value.numel() for value in model.params().values()) == 1_626_442  # pfl-research's CIFAR-10 network


def test_lenet_has_the_published_number_of_parameters() -> None:
    model = MultiTaskModel(cnn.lenet((3, 32, 32)), heads.LinearHeads(84, 10), BCE(10))
    # By hand: (3 25 + 1) 6 + (6 25 + 1) 16 + (400 + 1) 120 + (120 + 1) 84 + (84 + 1) 10.
    assert sum(value.numel() for value in model.params().values()) == 456 + 2416 + 48120 + 10164 + 850 == 62_006


def test_depthwise_separable_block_has_the_parameters_counted_by_hand() -> None:
    block = cnn.DepthwiseSeparable(16, 32)
    assert sum(p.numel() for p in block.parameters()) == 16 * 9 + 2 * 16 + 16 * 32 + 2 * 32


def test_images_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 3x3 are too small for this trunk"):
        cnn.classic_cnn((1, 3, 3))


def test_batch_norm_is_refused_by_name() -> None:
    trunk = cnn.Trunk(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)), 16)
    with pytest.raises(ValueError, match=r"BatchNorm \(trunk.features.1\).*norm=group, norm=frozen or norm=local"):
        MultiTaskModel(trunk, heads.LinearHeads(16, 3), BCE(3))


def test_head_parameters_have_the_tasks_first_and_touch_only_their_task() -> None:
    for make in (heads.LinearHeads, heads.CosineHeads):
        layer = make(6, 4)
        features = torch.rand(3, 6)
        before = layer(features)
        with torch.no_grad():
            for parameter in layer.parameters():
                assert parameter.shape[0] == 4
                parameter[2] += torch.linspace(0.1, 0.7, parameter[2].numel()).view_as(parameter[2])
        changed = (layer(features) != before).any(0)
        assert changed.tolist() == [False, False, True, False]


def test_linear_heads_agree_with_a_layer_per_task() -> None:
    fused = heads.LinearHeads(5, 3)
    features = torch.rand(2, 5)
    for t in range(3):
        single = nn.Linear(5, 1)
        single.load_state_dict({"weight": fused.weight[t : t + 1].detach(), "bias": fused.bias[t : t + 1].detach()})
        assert torch.allclose(single(features)[:, 0], fused(features)[:, t])


def test_cosine_heads_give_cosines_and_start_orthogonal() -> None:
    layer = heads.CosineHeads(8, 5)
    features = torch.randn(4, 8)
    by_hand = torch.stack([nn.functional.cosine_similarity(features, w[None]) for w in layer.weight], 1)
    assert torch.allclose(layer(features), by_hand, atol=1e-6)
    assert torch.allclose(layer.weight @ layer.weight.T, torch.eye(5), atol=1e-5)


def test_parameters_say_whose_they_are() -> None:
    model = MultiTaskModel(cnn.flat((1, 2, 2)), heads.LinearHeads(4, 3), BCE(3))
    assert {name: is_head(name) for name in model.params()} == {"heads.weight": True, "heads.bias": True}
