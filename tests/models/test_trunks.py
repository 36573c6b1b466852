"""What is right is said by torchvision: its own networks, the numbers of parameters that it publishes, its smallest images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchvision import models

from mtl.base.types import Params
from mtl.losses.bce import BCE
from mtl.models import cnn, heads, trunks
from mtl.models.cnn import Trunk
from mtl.models.dropout import KeyedDropout
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from mtl.models.sphereface import ResidualUnit, sphereface_cnn
from mtl.models.weights import adapt_channels, load_weights

Make = Callable[..., Trunk]
# How it is made here, torchvision's name, the parameters of its classifier: by hand, of 1000 classes, from the layers in its documentation.
NETWORKS: list[tuple[Make, dict[str, Any], str, int]] = [
    (trunks.vgg, {}, "vgg11", 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4097 * 1000),
    (trunks.vgg, {"depth": 16, "batch_norm": True}, "vgg16_bn", 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4097 * 1000),
    (trunks.resnet, {}, "resnet18", 513 * 1000),
    (trunks.resnet, {"depth": 50}, "resnet50", 2049 * 1000),
    # Its auxiliary classifier too: two convolutions with BatchNorm and a layer.
    (trunks.inception_v3, {}, "inception_v3", 2049 * 1000 + 768 * 128 + 256 + 128 * 768 * 25 + 1536 + 769 * 1000),
    (trunks.mobilenet_v2, {}, "mobilenet_v2", 1281 * 1000),
    (trunks.mobilenet_v3, {}, "mobilenet_v3_small", 577 * 1024 + 1025 * 1000),
    (trunks.mobilenet_v3, {"size": "large"}, "mobilenet_v3_large", 961 * 1280 + 1281 * 1000),
    (trunks.shufflenet_v2, {"multiplier": 0.5}, "shufflenet_v2_x0_5", 1025 * 1000),
    (trunks.shufflenet_v2, {}, "shufflenet_v2_x1_0", 1025 * 1000),
    (trunks.squeezenet, {"version": "1_0"}, "squeezenet1_0", 513 * 1000),
    (trunks.squeezenet, {}, "squeezenet1_1", 513 * 1000),
    (trunks.efficientnet, {}, "efficientnet_b0", 1281 * 1000),
]
LIGHT = [row for row in NETWORKS if row[2] in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")]
SHAPES = {"inception_v3": (3, 80, 75)}


def ids(row: object) -> str | None:
    return row if isinstance(row, str) else ""


def torchvision_net(name: str) -> nn.Module:
    """torchvision's network with random statistics and without its classifier; VGG's pools to one place."""
    options = {"init_weights": False} if name == "inception_v3" else {}
    net = models.get_model(name, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]
    return net.eval()


def torchvision_features(net: nn.Module, images: Tensor) -> Tensor:
    for head in ("fc", "classifier"):
        if hasattr(net, head):
            setattr(net, head, nn.Identity())
    if isinstance(net, models.VGG):
        net.avgpool = nn.AdaptiveAvgPool2d(1)
    features: Tensor = net(images).flatten(1)
    return F.adaptive_avg_pool2d(net.features(images), 1).flatten(1) if isinstance(net, models.SqueezeNet) else features


@pytest.mark.parametrize(("make", "options", "name", "head"), NETWORKS, ids=ids)
def test_trunk_has_the_published_parameters_but_the_classifiers(
    make: Make, options: dict[str, Any], name: str, head: int
) -> None:
    trunk = make((3, 80, 80), **options)
    published = models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in trunk.parameters()) == published - head
    assert trunk.published is not None
    assert trunk.published.weights is models.get_model_weights(name)


@pytest.mark.parametrize(("make", "options", "name", "head"), [*LIGHT, NETWORKS[4]], ids=ids)
def test_with_their_weights_features_are_those_of_torchvisions_network(
    make: Make, options: dict[str, Any], name: str, head: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = torchvision_net(name)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    shape = SHAPES.get(name, (3, 56, 46))
    trunk = make(shape, **options)
    load_weights(trunk, str(tmp_path / "weights.pth"))
    images = torch.rand(2, *shape)
    with torch.no_grad():
        expected = torchvision_features(net, images)
        assert torch.allclose(trunk.eval()(images), expected, rtol=1e-4, atol=1e-5)
        frozen = replace_batch_norm(trunk, "frozen")
        assert torch.allclose(frozen(images), expected, rtol=1e-3, atol=1e-4)
    assert expected.shape == (2, trunk.width)


@pytest.mark.parametrize(("make", "options", "name", "head"), LIGHT, ids=ids)
@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 33, 64)])
def test_any_channels_and_an_embedding(
    make: Make, options: dict[str, Any], name: str, head: int, shape: tuple[int, int, int]
) -> None:
    trunk = make(shape, width=24, **options).eval()
    assert trunk(torch.rand(2, *shape)).shape == (2, 24)
    assert trunk.width == 24


@pytest.mark.parametrize(
    ("make", "options", "least"),
    [
        (trunks.vgg, {}, 32),
        pytest.param(trunks.inception_v3, {}, 75, marks=pytest.mark.slow),
        (trunks.squeezenet, {"version": "1_0"}, 21),
        (trunks.squeezenet, {}, 17),
    ],
)
def test_images_too_small_are_refused_by_the_smallest_size(make: Make, options: dict[str, Any], least: int) -> None:
    # What torchvision gives as `min_size` of these networks.
    make((1, least, least + 30), **options)
    with pytest.raises(ValueError, match=rf"images of {least - 1}x64 are too small for this trunk, .* {least}x{least} and up"):
        make((1, least - 1, 64), **options)


@pytest.mark.parametrize("multiplier", [0.25, 0.77])
@pytest.mark.parametrize("make", [trunks.mobilenet_v2, trunks.mobilenet_v3, trunks.shufflenet_v2, cnn.separable_cnn])
def test_a_multiplier_below_one_makes_the_trunk_smaller(make: Make, multiplier: float) -> None:
    whole, part = make((1, 32, 32)), make((1, 32, 32), multiplier=multiplier)
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in whole.parameters())
    assert part.eval()(torch.rand(2, 1, 32, 32)).shape == (2, part.width)


def test_sphereface_has_the_layers_of_the_paper() -> None:
    # Table 2: 3x3 convolutions of 64, 128, 256 and 512 channels at 112x96, the embedding behind 7x6 places.
    for depth, convolutions in (
        (4, [1, 1, 1, 1]),
        (10, [1, 3, 5, 1]),
        (20, [3, 5, 9, 3]),
        (36, [5, 9, 17, 5]),
        (64, [7, 17, 33, 7]),
    ):
        trunk = sphereface_cnn((3, 112, 96), depth=depth, width=512)
        result = [layer.out_channels for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
        assert result == [c for c, n in zip((64, 128, 256, 512), convolutions, strict=True) for _ in range(n)]
        assert len(result) == depth
        *_, embedding = trunk.modules()
        assert isinstance(embedding, nn.Linear)
        assert embedding.in_features == 512 * 7 * 6


def test_sphereface_units_start_as_the_identity_and_learn() -> None:
    trunk = sphereface_cnn((1, 28, 23), multiplier=0.25, width=16)
    shallow = sphereface_cnn((1, 28, 23), depth=4, multiplier=0.25, width=16)
    shallow.load_state_dict(trunk.state_dict(), strict=False)
    images = torch.randn(3, 1, 28, 23)
    torch.testing.assert_close(trunk(images), shallow(images))
    trunk(images).square().sum().backward()
    unit = next(layer for layer in trunk.modules() if isinstance(layer, ResidualUnit))
    norm = unit.body[4]
    assert isinstance(norm, nn.GroupNorm)
    assert norm.weight.grad is not None
    assert bool((norm.weight.grad != 0).any())
    for options, message in (
        ({"depth": 18}, "trunk.depth must be one of 4, 10, 20, 36, 64, got 18"),
        ({"multiplier": 0.0}, "trunk.multiplier must be > 0, got 0"),
        ({"width": 0}, "trunk.width and trunk.groups must be >= 1, got 0 and 8"),
    ):
        with pytest.raises(ValueError, match=message):
            sphereface_cnn((1, 28, 23), **options)


def test_separable_cnn_scales_whole_groups() -> None:
    trunk = cnn.separable_cnn((1, 32, 32), channels=[32, 64], groups=8, multiplier=0.6)
    assert [layer.out_channels for layer in trunk.modules() if isinstance(layer, nn.Conv2d)] == [16, 16, 40]


def test_resnet_for_small_images_keeps_their_places() -> None:
    trunk = trunks.resnet((3, 32, 32), small_images=True)
    assert trunk.features.conv1(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    with torch.no_grad():
        last = nn.Sequential(*list(trunk.features)[:-2])(torch.zeros(2, 3, 32, 32))
    assert last.shape == (2, 512, 4, 4)


def test_grey_images_give_what_three_equal_channels_give(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision_net("squeezenet1_1")
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    grey = torch.rand(2, 1, 40, 40)
    with torch.no_grad():
        expected = torchvision_features(net, grey.expand(-1, 3, -1, -1))
        for channels in (1, 2, 5):
            trunk = trunks.squeezenet((channels, 40, 40)).eval()
            load_weights(trunk, str(tmp_path / "weights.pth"))
            assert torch.allclose(trunk(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(adapt_channels(torch.tensor([[[[1.0]], [[2.0]], [[6.0]]]]), 1), torch.tensor([[[[9.0]]]]))


def test_weights_that_do_not_fit_are_refused_and_all_listed(tmp_path: Path) -> None:
    file = str(tmp_path / "weights.pth")
    torch.save(models.resnet18().state_dict(), file)
    with pytest.raises(ValueError, match="must fit the trunk") as caught:
        load_weights(trunks.resnet((3, 32, 32), depth=34), file)
    # Eight more blocks than 18 layers have, each of two convolutions with BatchNorm of two parameters and two statistics.
    assert str(caught.value).count("is missing") == 8 * 2 * 5
    with pytest.raises(ValueError, match=r"conv1.weight is of shape \[64, 3, 7, 7\] instead of \[64, 3, 3, 3\]"):
        load_weights(trunks.resnet((3, 32, 32), small_images=True), file)
    torch.save(models.resnet34().state_dict(), file)
    with pytest.raises(ValueError, match=r"48 parameters do not: .*features.layer1.2.conv1.weight is in excess"):
        load_weights(trunks.resnet((3, 32, 32)), file)


def test_an_embedding_stays_when_published_weights_come(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    trunk = trunks.squeezenet((3, 32, 32), width=8)
    before = trunk.features.embedding.weight.clone()
    load_weights(trunk, str(tmp_path / "weights.pth"))
    assert torch.equal(trunk.features.embedding.weight, before)


def test_published_weights_come_from_torchs_cache_or_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    trunk = trunks.squeezenet((3, 32, 32))
    place = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    with pytest.raises(ValueError, match=rf"weights=DEFAULT cannot be fetched .*no route to host.*; put https://.* at {place}"):
        load_weights(trunk, "DEFAULT")
    net = models.squeezenet1_1()
    torch.save(net.state_dict(), place)
    for name in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        with torch.no_grad():
            for parameter in trunk.parameters():
                parameter.zero_()
        load_weights(trunk, name)
        assert torch.equal(trunk.features.features[0].weight, net.features[0].weight)
    place.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=rf"weights=DEFAULT are damaged .*; delete {place}"):
        load_weights(trunk, "DEFAULT")


@pytest.mark.parametrize(
    ("make", "weights", "message"),
    [
        (trunks.squeezenet, "IMAGENET1K_V2", "or one of IMAGENET1K_V1, DEFAULT; got IMAGENET1K_V2|or one of IMAGENET1K_V1; got"),
        (trunks.squeezenet, "ResNet18_Weights.IMAGENET1K_V1", "; got ResNet18_Weights.IMAGENET1K_V1, which is none of them"),
        (cnn.small_cnn, "DEFAULT", "a run directory or a file; none are published for this trunk; got DEFAULT"),
    ],
)
def test_unknown_weights_list_the_choices(make: Make, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_weights(make((3, 32, 32)), weights)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("none")
    torch.save([1, 2], tmp_path / "list.pth")
    trunk = trunks.squeezenet((3, 32, 32))
    with pytest.raises(ValueError, match=r"must hold a whole torch file of tensors, and .*text.pth does not"):
        load_weights(trunk, str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match=r"must hold tensors by name, and .*list.pth holds a list"):
        load_weights(trunk, str(tmp_path / "list.pth"))
    with pytest.raises(ValueError, match=r"must be a run directory with checkpoints/best.ckpt or checkpoints/last.ckpt"):
        load_weights(trunk, str(tmp_path))


def test_wrong_options_are_refused() -> None:
    cases: list[tuple[Make, dict[str, Any], str]] = [
        (trunks.vgg, {"depth": 12}, "trunk.depth must be one of 11, 13, 16, 19, got 12"),
        (trunks.resnet, {"depth": 19}, "trunk.depth must be one of 18, 34, 50, 101, 152, got 19"),
        (trunks.mobilenet_v3, {"size": "tiny"}, "trunk.size must be one of small, large, got tiny"),
        (trunks.mobilenet_v2, {"multiplier": 0}, "trunk.multiplier must be > 0, got 0"),
        (trunks.efficientnet, {"variant": "b8"}, "trunk.variant must be one of b0, .*, got b8"),
        (trunks.efficientnet, {"stochastic_depth": 1}, r"trunk.stochastic_depth must be in \[0, 1\), got 1"),
        (trunks.squeezenet, {"version": "2"}, "trunk.version must be one of 1_0, 1_1, got 2"),
        (trunks.squeezenet, {"width": 0}, "trunk.width must be null or >= 1, got 0"),
    ]
    for make, options, message in cases:
        with pytest.raises(ValueError, match=message):
            make((3, 64, 64), **options)


STACKED = [
    (trunks.mobilenet_v3, {"multiplier": 0.5}, (1, 24, 24)),
    (trunks.shufflenet_v2, {"multiplier": 0.5}, (1, 24, 24)),
    (trunks.squeezenet, {}, (1, 24, 24)),
    *(
        pytest.param(make, options, shape, marks=pytest.mark.slow)
        for make, options, shape in (
            (trunks.vgg, {"batch_norm": True}, (1, 32, 32)),
            (trunks.resnet, {}, (1, 24, 24)),
            (trunks.mobilenet_v2, {"multiplier": 0.25}, (1, 24, 24)),
            (trunks.efficientnet, {"stochastic_depth": 0.5}, (1, 24, 24)),
            (trunks.inception_v3, {}, (1, 75, 75)),
        )
    ),
]


@pytest.mark.parametrize(("make", "options", "shape"), STACKED)
def test_every_trunk_can_be_stacked_and_then_trains_each_client_as_alone(
    make: Make, options: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    trunk = replace_batch_norm(make(shape, **options), "group")
    model = MultiTaskModel(trunk, heads.LinearHeads(trunk.width, 3), BCE(3)).double().train()
    params = {name: torch.stack([value, value * 1.1]) for name, value in model.params().items()}
    images = torch.rand(2, 2, *shape, dtype=torch.float64)
    keys = torch.randint(-(2**31), 2**31, (2, len(model.dropouts), 2), dtype=torch.int32)
    valid = torch.ones(2, dtype=torch.bool)

    def loss(params: Params, images: Tensor, keys: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, params | model.step_buffers(keys, valid), (images,))
        return logits.square().sum()

    result = vmap(grad(loss))(params, images, keys)
    for k in range(2):
        client_params = {name: value[k].clone().requires_grad_() for name, value in params.items()}
        expected = torch.autograd.grad(loss(client_params, images[k], keys[k]), list(client_params.values()))
        for name, value in zip(client_params, expected, strict=True):
            torch.testing.assert_close(result[name][k], value, rtol=1e-6, atol=1e-9, msg=name)


def test_stochastic_depth_drops_whole_images_with_its_probability() -> None:
    trunk = replace_batch_norm(trunks.efficientnet((3, 32, 32), stochastic_depth=0.8), "group")
    model = MultiTaskModel(trunk, heads.LinearHeads(trunk.width, 2), BCE(2))
    drops = [layer for layer in model.modules() if isinstance(layer, KeyedDropout)]
    assert len(drops) == len(model.dropouts) == 16  # its blocks: 1 + 2 + 2 + 3 + 3 + 4 + 1
    assert [layer.p for layer in drops] == pytest.approx([0.8 * i / 16 for i in range(16)])
    layer = KeyedDropout(0.3, whole="image")
    layer.key = torch.tensor([5, 6], dtype=torch.int32)
    outputs = layer(torch.ones(4000, 2, 3, 3)).flatten(1)
    assert ((outputs == 0).all(1) | (outputs == torch.tensor(1.0) / 0.7).all(1)).all()
    assert float((outputs[:, 0] == 0).float().mean()) == pytest.approx(0.3, abs=0.03)  # deviation .007
