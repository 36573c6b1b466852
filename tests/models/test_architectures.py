"""Every architecture keeps the contract of `MultiTaskModel`, and is another one where its options say so."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.federation.layout import is_head
from mtl.losses.bce import BCE
from mtl.models import cnn, heads
from mtl.models.architecture import Architecture, Parts, group_of_each
from mtl.models.branches import Branches
from mtl.models.cgc import cgc
from mtl.models.cnn import Trunk
from mtl.models.cross_stitch import cross_stitch
from mtl.models.dselect_k import DSelectGates, dselect_k, smooth_step
from mtl.models.grouped import grouped
from mtl.models.hard_sharing import hard_sharing
from mtl.models.mmoe import mmoe
from mtl.models.mtan import mtan
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from mtl.models.ple import ple
from mtl.models.soft_sharing import soft_sharing

TASKS = ("smiling", "hat", "beard", "young", "glasses")
SHAPE = (1, 8, 8)
ARCHITECTURES: dict[str, Callable[[Parts], tuple[nn.Module, nn.Module]]] = {
    "hard_sharing": hard_sharing,
    "cross_stitch": lambda parts: cross_stitch(parts, groups=2),
    "soft_sharing": lambda parts: soft_sharing(parts, groups=3),
    "grouped": lambda parts: grouped(parts, groups=2),
    "mtan": mtan,
    "mtan of groups": lambda parts: mtan(parts, groups=2),
    "mmoe": lambda parts: mmoe(parts, num_experts=3, width=6),
    "dselect_k": lambda parts: dselect_k(parts, num_experts=4, width=6),
    "dselect_k of the subtask": lambda parts: dselect_k(parts, num_experts=4, width=6, per_image=False),
    "cgc": lambda parts: cgc(parts, width=6),
    "ple": lambda parts: ple(parts, width=6),
    "ple of groups": lambda parts: ple(parts, num_levels=3, num_own=2, width=6, groups=2),
}


def small(shape: cnn.ImageShape = SHAPE) -> Trunk:
    return cnn.small_cnn(shape, channels=(4, 8), width=6, groups=2)


def parts_of(
    make: Callable[[], Trunk] = small, *, head: type[nn.Module] = heads.LinearHeads, shape: cnn.ImageShape = SHAPE
) -> Parts:
    return Parts(make, lambda width: head(width, len(TASKS)), "made", TASKS, shape)


def model_of(architecture: Architecture, parts: Parts | None = None, seed: int = 0) -> MultiTaskModel:
    torch.manual_seed(seed)
    return MultiTaskModel(*architecture(parts or parts_of()), BCE(len(TASKS))).double()


def images(count: int = 3, shape: cnn.ImageShape = SHAPE) -> Tensor:
    return torch.rand(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def set_to(parameter: nn.Parameter | None, value: Any) -> None:
    assert parameter is not None
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("make", [cnn.small_cnn, cnn.classic_cnn, cnn.separable_cnn, cnn.lenet, cnn.flat])
@pytest.mark.parametrize("head", [heads.LinearHeads, heads.CosineHeads])
def test_any_trunk_gives_logits(
    architecture: Architecture, make: Callable[[cnn.ImageShape], Trunk], head: type[nn.Module]
) -> None:
    shape = (1, 16, 16)
    model = model_of(architecture, parts_of(lambda: make(shape), head=head, shape=shape)).eval()
    logits = model(images(3, shape))
    assert logits.shape == (3, len(TASKS))
    assert torch.allclose(logits[:1], model(images(3, shape)[:1]))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_parameters_of_a_subtask_touch_only_its_logit(architecture: Architecture) -> None:
    model = model_of(architecture)
    own = {name: parameter for name, parameter in model.named_parameters() if is_head(name)}
    assert all(len(parameter) == len(TASKS) for parameter in own.values())
    # Masked subtasks: only two of five have a loss.
    grads = torch.autograd.grad(model(images()).square()[:, [1, 3]].sum(), list(own.values()))
    touched = torch.stack([slope.reshape(len(TASKS), -1).abs().sum(1) for slope in grads]) > 0
    assert not touched[:, [0, 2, 4]].any()
    assert touched[:, [1, 3]].any(1).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_gradient_flows_to_every_parameter(architecture: Architecture) -> None:
    model = model_of(architecture)
    params = dict(model.named_parameters())
    # A second seed of images, so that no ReLU is off for all.
    loss = sum(model(5 * images(16) - shift).square().sum() for shift in (0, 2))
    for (name, _), slope in zip(params.items(), torch.autograd.grad(loss, list(params.values())), strict=True):
        assert slope.abs().sum() > 0, name


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_channels_last_changes_nothing(architecture: Architecture) -> None:
    model = model_of(architecture)
    expected = model(images())
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(images().contiguous(memory_format=torch.channels_last)), expected)


# Grouped, and how groups are named.


def test_groups_are_runs_or_lists_of_names_and_numbers() -> None:
    assert group_of_each(2, TASKS).tolist() == [0, 0, 0, 1, 1]
    assert group_of_each(5, TASKS).tolist() == [0, 1, 2, 3, 4]
    assert group_of_each([["young", 0], ["hat", "beard", 4]], TASKS).tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (0, r"architecture.groups must be in \[1, 5\], the number of subtasks, got 0"),
        (6, r"architecture.groups must be in \[1, 5\], the number of subtasks, got 6"),
        ([["hat", "smiling"], ["beard", 1, "young"]], "every subtask once, and hat is there twice"),
        ([["hat"], [0]], "every subtask once, and these are missing: beard, young, glasses"),
        ([[0, 1, 2, 3, 4], []], "group 1 is empty"),
        ([["wig"]], "among smiling, hat, beard, young, glasses, got wig"),
        ([[5]], r"numbers of subtasks in \[0, 4\], got 5"),
    ],
)
def test_groups_that_are_not_every_subtask_once_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_of_each(groups, TASKS)


def independent(model: MultiTaskModel, trunks: list[Trunk], group: Tensor) -> Tensor:
    """Logits of trunks that know nothing of one another, with the heads of `model`."""
    last = model.heads.last
    features = torch.stack([trunk.double()(images()) for trunk in trunks], 1)
    columns = [F.linear(features[:, group[t]], last.weight[t : t + 1], last.bias[t : t + 1]) for t in range(len(TASKS))]
    return torch.cat(columns, 1)


def test_grouped_is_a_trunk_for_each_group() -> None:
    trunks: list[Trunk] = []
    recording = parts_of(lambda: trunks.append(small()) or copy.deepcopy(trunks[-1]))  # type: ignore[func-returns-value]
    model = model_of(lambda parts: grouped(parts, groups=[[0, 3], [1, 2, 4]]), recording)
    assert numbers(model.trunk) == 2 * numbers(small())
    assert torch.allclose(model(images()), independent(model, trunks, torch.tensor([0, 1, 1, 0, 1])))


def test_one_group_is_hard_sharing() -> None:
    expected = model_of(hard_sharing)(images())
    for architecture in (
        lambda parts: grouped(parts, groups=1),
        lambda parts: cross_stitch(parts, groups=1),
        lambda parts: soft_sharing(parts, groups=1, num_bases=1),
    ):
        assert torch.allclose(model_of(architecture)(images()), expected)


def test_branches_drop_out_apart_and_as_named() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    model = MultiTaskModel(Branches([net, copy.deepcopy(net)]), nn.Identity(), BCE(2))
    assert model.dropouts == ["trunk.module.1"]
    inputs = torch.rand(3, 4)
    model.set_step(torch.tensor([[5, 6]], dtype=torch.int32), torch.ones(3, dtype=torch.bool))
    first = model.trunk(inputs, same=True)
    assert torch.equal(first, model.trunk(inputs, same=True))
    survivors = first != 0
    assert 0.3 < float((survivors[0] == survivors[1]).float().mean()) < 0.7
    assert torch.equal(model.eval().trunk(inputs, same=True)[0], model.trunk(inputs, same=True)[1])


@pytest.mark.parametrize("norm", ["group", "frozen", "local"])
def test_the_norm_policy_holds_in_every_branch(norm: str) -> None:
    def with_batch_norm() -> Trunk:
        features = nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6))
        return Trunk(features, 6)

    with pytest.raises(ValueError, match=r"BatchNorm \(trunk.*\) has running statistics"):
        model_of(lambda parts: grouped(parts, groups=2), parts_of(with_batch_norm))
    trunks: list[Trunk] = []
    recording = parts_of(lambda: trunks.append(replace_batch_norm(with_batch_norm(), norm)) or copy.deepcopy(trunks[-1]))  # type: ignore
    model = model_of(lambda parts: cross_stitch(parts, groups=2, same=1.0), recording)
    expected = independent(model, trunks, group_of_each(2, TASKS))
    model.set_step(torch.zeros(0, 2, dtype=torch.int32), torch.ones(3, dtype=torch.bool))
    assert torch.allclose(model(images()), expected)


# Cross-stitch.


def test_cross_stitch_at_identity_is_trunks_on_their_own() -> None:
    apart = model_of(lambda parts: cross_stitch(parts, groups=2, same=1.0))
    assert torch.allclose(apart(images()), model_of(lambda parts: grouped(parts, groups=2))(images()))


def test_cross_stitch_mixes_after_every_stage() -> None:
    trunks: list[Trunk] = []
    recording = parts_of(lambda: trunks.append(small()) or copy.deepcopy(trunks[-1]))  # type: ignore[func-returns-value]
    model = model_of(lambda parts: cross_stitch(parts, groups=3, same=0.8), recording)
    assert model.trunk.alpha.shape == (3, 3, 3)
    assert torch.allclose(model.trunk.alpha.sum(-1), torch.ones(3, 3, dtype=torch.float64))
    features = [images()] * 3
    for stages in zip(*(trunk.double().stages for trunk in trunks), strict=True):
        before = [stage(own) for stage, own in zip(stages, features, strict=True)]
        features = [sum(0.8 * x if a == b else 0.1 * x for b, x in enumerate(before)) for a in range(3)]  # type: ignore[misc]
    assert torch.allclose(model.trunk(images()), torch.stack(features, 1))
    assert numbers(model.trunk) == 3 * numbers(small()) + 3 * 9


# Soft sharing.


def test_soft_sharing_with_a_basis_for_each_group_is_trunks_on_their_own() -> None:
    model = model_of(lambda parts: soft_sharing(parts, groups=3, num_bases=3))
    for mixing in model.trunk.mixing.values():
        set_to(mixing, torch.eye(3))
    assert torch.allclose(model(images()), model_of(lambda parts: grouped(parts, groups=3))(images()))


def test_soft_sharing_with_equal_rows_is_one_trunk() -> None:
    model = model_of(lambda parts: soft_sharing(parts, groups=3))
    for mixing in model.trunk.mixing.values():
        set_to(mixing, torch.tensor([0.3, 0.7]).expand(3, 2))
    features = model.trunk(images())
    assert torch.allclose(features, features[:, :1].expand_as(features))


def test_soft_sharing_mixes_each_layer_by_its_own_numbers() -> None:
    trunks: list[Trunk] = []
    recording = parts_of(lambda: trunks.append(small()) or copy.deepcopy(trunks[-1]))  # type: ignore[func-returns-value]
    model = model_of(lambda parts: soft_sharing(parts, groups=3), recording)
    rng = torch.Generator().manual_seed(3)
    for mixing in model.trunk.mixing.values():
        set_to(mixing, torch.rand(3, 2, generator=rng))
    expected = []
    for g in range(3):
        mixed = copy.deepcopy(trunks[0]).double()
        for (name, parameter), other in zip(mixed.named_parameters(), trunks[1].parameters(), strict=True):
            share = model.trunk.mixing[name.rpartition(".")[0].replace(".", "_")][g]
            set_to(parameter, share[0] * parameter + share[1] * other.double())
        expected.append(mixed(images()))
    assert torch.allclose(model.trunk(images()), torch.stack(expected, 1))
    # Two convolutions, two norms and the embedding have a mixing of [3, 2] each.
    assert numbers(model.trunk) == 2 * numbers(small()) + 5 * 6


# MTAN.


def test_mtan_with_attention_of_ones_is_the_trunk() -> None:
    for groups in (None, 2):
        torch.manual_seed(0)
        trunk = small().double()
        model = model_of(lambda parts, groups=groups: mtan(parts, groups=groups))
        attention = model.heads.attention if groups is None else model.trunk.attention
        for mask in attention.masks:
            set_to(mask.out, torch.zeros_like(mask.out))
            set_to(mask.out_bias, torch.full_like(mask.out_bias, 50.0))
        last = model.heads.last
        assert torch.allclose(model(images()), F.linear(trunk(images()), last.weight, last.bias))


def test_mtan_is_the_paper_s_equation_task_by_task() -> None:
    model = model_of(lambda parts: mtan(parts, squeeze=2))
    torch.manual_seed(0)
    trunk = small().double()
    masks, last = model.heads.attention.masks, model.heads.last
    for t in range(len(TASKS)):
        features, attended = images(), None
        for stage, mask in zip(trunk.stages, masks, strict=True):
            features = stage(features)
            seen, weight = features, mask.own[t]
            if attended is not None:
                size = features.shape[2:]
                pooled = F.adaptive_avg_pool2d(attended, size) if size else attended.mean((2, 3))
                seen, weight = torch.cat([features, pooled], 1), torch.cat([mask.own[t], mask.before[t]], 1)
            places = [1] * (features.ndim - 2)

            def conv(inputs: Tensor, weight: Tensor, bias: Tensor, places: list[int] = places) -> Tensor:
                if not places:
                    return F.linear(inputs, weight, bias)
                return F.conv2d(inputs, weight.view(*weight.shape, 1, 1), bias)

            hidden = conv(seen, weight, mask.bias[t]).relu()
            attended = conv(hidden, mask.out[t], mask.out_bias[t]).sigmoid() * features
        assert attended is not None
        assert torch.allclose(model(images())[:, t], attended @ last.weight[t] + last.bias[t])


def test_mtan_has_the_parameters_counted_by_hand() -> None:
    model = model_of(lambda parts: mtan(parts, squeeze=2))
    # Stages of 4, 8 and 6 channels, squeezed to 2, 4 and 3; g reads a stage and the one before, h gives the stage.
    by_hand = (2 * 4 + 2 + 4 * 2 + 4) + (4 * (8 + 4) + 4 + 8 * 4 + 8) + (3 * (6 + 8) + 3 + 6 * 3 + 6)
    assert numbers(model.heads) == 5 * (by_hand + 6 + 1)


# Mixtures of experts.


def test_mmoe_with_one_expert_is_hard_sharing_with_that_layer() -> None:
    model = model_of(lambda parts: mmoe(parts, num_experts=1, width=7))
    torch.manual_seed(0)
    trunk = small().double()
    expert = model.trunk.experts.layer
    features = F.relu(F.linear(trunk(images()), expert.weight[0], expert.bias[0]))
    assert torch.allclose(model(images()), F.linear(features, model.heads.last.weight, model.heads.last.bias))


def test_mmoe_is_the_paper_s_equation_task_by_task() -> None:
    model = model_of(lambda parts: mmoe(parts, num_experts=3, width=7))
    gates, experts, last = model.heads.gates.layer, model.trunk.experts.layer, model.heads.last
    set_to(gates.weight, torch.randn(gates.weight.shape, generator=torch.Generator().manual_seed(2)))
    h = model.trunk.base(images())
    f = [F.relu(h @ experts.weight[0, 7 * e : 7 * e + 7].T + experts.bias[0, 7 * e : 7 * e + 7]) for e in range(3)]
    for t in range(len(TASKS)):
        g = (h @ gates.weight[t].T + gates.bias[t]).softmax(1)
        mixed = sum(g[:, e : e + 1] * f[e] for e in range(3))
        assert torch.allclose(model(images())[:, t], mixed @ last.weight[t] + last.bias[t])
    # Experts of 6 to 7 numbers, gates of 6 to 3, heads of 7 to 1.
    assert numbers(model.trunk) - numbers(small()) == 3 * (6 * 7 + 7)
    assert numbers(model.heads) == 5 * (3 * (6 + 1) + 7 + 1)


def test_smooth_step_has_the_values_of_the_paper() -> None:
    # Equation (2) of Hazimeh et al. by hand: S(1/4) at gamma = 1 is -2/64 + 3/8 + 1/2 = 27/32; S(1/2) at gamma = 2 the same.
    z = torch.tensor([-9.0, -0.5, -0.25, 0.0, 0.25, 0.5, 9.0], dtype=torch.float64)
    assert smooth_step(z, 1.0).tolist() == [0.0, 0.0, 5 / 32, 0.5, 27 / 32, 1.0, 1.0]
    assert smooth_step(torch.tensor([0.5]), 2.0).tolist() == [27 / 32]
    for gamma in (0.3, 1.0, 7.0):
        z = torch.linspace(-gamma, gamma, 101, dtype=torch.float64)
        by_hand = -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5
        by_hand = torch.where(z <= -gamma / 2, 0.0, torch.where(z >= gamma / 2, 1.0, by_hand))
        assert torch.allclose(smooth_step(z, gamma), by_hand, atol=1e-12)


def test_a_dselect_gate_beyond_the_step_picks_the_expert_of_its_bits() -> None:
    gates = DSelectGates(0, 1, 8, 2, gamma=1.0)
    # First selector: bits 1, 0, 1 of expert 5; second: 0, 1, 1 of expert 6; weights softmax(ln 3, 0) = 3/4, 1/4.
    set_to(gates.bias, [[0.6, -2.0, 0.5, -0.5, 3.0, 0.7, math.log(3.0), 0.0]])
    assert gates(torch.zeros(1, 4))[0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0.75, 0.25, 0])
    # In between by hand, four experts and one selector: S(1/4) = 27/32 and S(0) = 1/2.
    gates = DSelectGates(0, 1, 4, 1, gamma=1.0)
    set_to(gates.bias, [[0.25, 0.0, 0.0]])
    assert gates(torch.zeros(1, 4))[0, 0].tolist() == pytest.approx([5 / 64, 27 / 64, 5 / 64, 27 / 64])


@pytest.mark.parametrize("per_image", [True, False])
def test_dselect_gates_converge_to_k_experts(per_image: bool) -> None:
    model = model_of(lambda parts: dselect_k(parts, num_experts=8, num_selected=2, width=6, entropy=1.0, per_image=per_image))
    representation = tuple(part.detach() for part in model.trunk(images()))
    gates = model.heads.gates
    weights = gates(representation[0])
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert ((weights > 0).sum(-1) == 8).all()
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        penalty = model.penalty(representation)
        assert penalty is not None
        penalty.sum().backward()
        optimizer.step()
    weights = gates(representation[0])
    assert ((weights > 0).sum(-1) <= 2).all()
    assert ((weights > 0).sum(-1) == 2).any()
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert float(penalty.detach().abs().max()) < 1e-4


def test_the_entropy_of_undecided_selectors_is_that_of_all_experts() -> None:
    model = model_of(lambda parts: dselect_k(parts, num_experts=4, num_selected=2, entropy=0.5, per_image=False))
    set_to(model.heads.gates.bias, torch.zeros(5, 6))
    penalty = model.penalty(model.trunk(images()))
    assert torch.allclose(penalty, torch.full((1, 5), 0.5 * 2 * math.log(4.0), dtype=torch.float64), atol=1e-4)  # type: ignore[arg-type]


def test_cgc_without_weight_on_its_own_experts_is_mmoe() -> None:
    model = model_of(lambda parts: cgc(parts, num_shared=3, num_own=2, width=7))
    other = model_of(lambda parts: mmoe(parts, num_experts=3, width=7))
    gates = model.heads.gates.layer
    shared = {name: value for name, value in model.state_dict().items() if name in other.state_dict() and "gates" not in name}
    assert len(shared) == len(other.state_dict()) - 2
    other.load_state_dict(shared, strict=False)
    set_to(gates.bias, torch.tensor([-torch.inf, -torch.inf, 0.0, 0.0, 0.0]).expand(5, 5))
    set_to(other.heads.gates.layer.weight, gates.weight[:, 2:])
    assert torch.allclose(model(images()), other(images()))
    # Own experts of 6 to 7 numbers, gates of 6 over five experts, heads.
    assert numbers(model.heads) == 5 * (2 * (6 * 7 + 7) + 5 * (6 + 1) + 7 + 1)


def test_ple_of_one_level_is_cgc() -> None:
    model = model_of(lambda parts: ple(parts, num_levels=1, width=7))
    assert torch.allclose(model(images()), model_of(lambda parts: cgc(parts, width=7))(images()))


def test_ple_is_the_paper_s_equations_group_by_group() -> None:
    model = model_of(lambda parts: ple(parts, num_shared=2, num_own=1, width=7, groups=[[0, 2], [1, 3, 4]]))
    rng = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            set_to(parameter, torch.randn(parameter.shape, generator=rng))
    level, last = model.trunk.levels[0], model.heads

    def layer(module: nn.Module, place: int, inputs: Tensor) -> Tensor:
        return F.linear(inputs, module.layer.weight[place], module.layer.bias[place])

    def mixed(gate: Tensor, experts: list[Tensor]) -> Tensor:
        share = gate.softmax(-1)
        return sum(share[:, e : e + 1] * expert for e, expert in enumerate(experts))  # type: ignore[return-value]

    h = model.trunk.base(images())
    own = [layer(level.own, g, h).relu() for g in range(2)]
    shared = list(layer(level.shared, 0, h).relu().split(7, -1))
    streams = [mixed(layer(level.gates, g, h), [own[g], *shared]) for g in range(2)]
    stream = mixed(layer(level.shared_gate, 0, h), [*own, *shared])
    shared = list(layer(model.trunk.shared, 0, stream).relu().split(7, -1))
    for t, g in enumerate([0, 1, 0, 1, 1]):
        experts = [layer(last.experts, t, streams[g]).relu(), *shared]
        features = mixed(layer(last.gates, t, streams[g]), experts)
        assert torch.allclose(model(images())[:, t], features @ last.last.weight[t] + last.last.bias[t])


# What is refused.


def test_a_trunk_without_stages_is_refused_by_name() -> None:
    class Whole(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1)

    parts = parts_of(lambda: Trunk(Whole(), 64))
    assert model_of(lambda parts: grouped(parts, groups=2), parts)(images()).shape == (3, 5)
    for architecture in (mtan, cross_stitch):
        name = architecture.__name__
        with pytest.raises(ValueError, match=f"architecture={name} needs a trunk in stages, and trunk=made has none"):
            model_of(architecture, parts)  # type: ignore[arg-type]


def test_stages_are_the_trunk_in_pieces() -> None:
    for make, count in ((cnn.small_cnn, 4), (cnn.classic_cnn, 3), (cnn.separable_cnn, 5), (cnn.lenet, 4), (cnn.flat, 1)):
        trunk = make((1, 16, 16))
        assert len(trunk.stages) == count
        assert [layer for stage in trunk.stages for layer in stage] == list(trunk.features)  # type: ignore[arg-type]
        assert not any(isinstance(stage[-1], nn.Flatten) for stage in trunk.stages[:-1])


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (lambda parts: cross_stitch(parts, same=1.5), r"architecture.same must be in \[0, 1\], got 1.5"),
        (lambda parts: soft_sharing(parts, num_bases=0), "architecture.num_bases must be >= 1, got 0"),
        (lambda parts: mtan(parts, squeeze=0), "architecture.squeeze must be >= 1, got 0"),
        (lambda parts: mmoe(parts, num_experts=0), "architecture.num_experts must be >= 1, got 0"),
        (lambda parts: dselect_k(parts, num_experts=6), "architecture.num_experts must be a power of two, 2 or more, got 6"),
        (lambda parts: dselect_k(parts, num_selected=5), r"architecture.num_selected must be in \[1, 4\], got 5"),
        (lambda parts: dselect_k(parts, gamma=0.0), "architecture.gamma must be > 0, got 0"),
        (lambda parts: dselect_k(parts, entropy=-1.0), "architecture.entropy must be >= 0, got -1"),
        (lambda parts: cgc(parts, num_own=0), "architecture.num_own must be >= 1, got 0"),
        (lambda parts: ple(parts, num_levels=0), "architecture.num_levels must be >= 1, got 0"),
    ],
)
def test_wrong_options_are_refused(architecture: Architecture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(architecture)
