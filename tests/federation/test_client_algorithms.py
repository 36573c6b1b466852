from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.base.types import Params
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.algorithms.local_adam import LocalAdam, LocalAdamW
from mtl.federation.algorithms.local_optimizer import LocalOptimizer, clip_by_norm
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.algorithms.reach import reach
from mtl.federation.schedule import Schedule
from tests.conftest import clone

SHAPES = {"trunk.conv": (16, 30, 12, 16), "trunk.b": (40,), "heads.w": (40, 196)}  # 100,040 coordinates
KINDS = {"usual": 1e-3, "zero": 0.0, "huge": 1e30, "not finite": 1.0}
# Ours and torch's; learning rate .02, heads a fifth of it.
PAIRS: dict[str, tuple[LocalOptimizer, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (
        LocalSGD(momentum=0.8, weight_decay=0.01, head_scale=0.2, clip=0.3),
        lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.8, weight_decay=0.01),
    ),
    "nesterov": (
        LocalSGD(momentum=0.8, nesterov=True, weight_decay=0.01, head_scale=0.2, clip=0.3),
        lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.8, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        LocalAdam(beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.01, head_scale=0.2, clip=0.3),
        lambda groups: torch.optim.Adam(groups, lr=0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.01),
    ),
    "adamw": (
        LocalAdamW(beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.01, head_scale=0.2, clip=0.3),
        lambda groups: torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.01),
    ),
}


def draw(kind: str, rng: torch.Generator) -> Params:
    """Gradients of a kind; those that are not finite are so in one coordinate."""
    grads = {name: KINDS[kind] * torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    if kind == "not finite":
        grads["trunk.b"][7] = torch.nan
    return grads


def as_torch(params: Params, make: Callable[..., torch.optim.Optimizer], grads: list[Params], clip: float | None) -> Params:
    """The parameters after torch's steps in double precision, where the norm of huge gradients is finite."""
    theirs = {name: torch.nn.Parameter(value.double()) for name, value in params.items()}
    heads = [value for name, value in theirs.items() if name.startswith("heads")]
    trunk = [value for name, value in theirs.items() if not name.startswith("heads")]
    optimizer = make([{"params": trunk}, {"params": heads, "lr": 0.02 * 0.2}])
    for step in grads:
        for name, parameter in theirs.items():
            parameter.grad = step[name].double()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        optimizer.step()
    return {name: value.detach() for name, value in theirs.items()}


def after(optimizer: LocalOptimizer, params: Params, grads: list[Params], *, compiling: bool = False) -> Params:
    """The parameters after our steps."""
    params, state = clone(params), optimizer.init(params)
    with mock.patch.object(torch.compiler, "is_compiling", return_value=compiling):
        for step in grads:
            params, state = optimizer.step(params, clone(step), state, torch.tensor(0.02, dtype=params["trunk.b"].dtype))
    return params


@given(st.floats(0.01, 0.5), st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.1]), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_steps_agree_with_torch(rate: float, momentum: float, weight_decay: float, compiling: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    start = {"trunk.w": torch.randn(3, 2, generator=rng), "heads.w": torch.randn(2, 2, generator=rng)}
    nesterov = momentum == 0.5
    algorithm = LocalSGD(learning_rate=rate, momentum=momentum, weight_decay=weight_decay, head_scale=0.5, nesterov=nesterov)
    params, state = clone(start), algorithm.init(start)
    reference = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    groups = [{"params": [reference["trunk.w"]]}, {"params": [reference["heads.w"]], "lr": rate * 0.5}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    for _ in range(4):
        grads = {name: torch.randn(value.shape, generator=rng) for name, value in start.items()}
        for name, parameter in reference.items():
            parameter.grad = grads[name].clone()
        optimizer.step()
        with mock.patch.object(torch.compiler, "is_compiling", return_value=compiling):
            params, state = algorithm.step(params, grads, state, torch.tensor(rate))
    for name, parameter in reference.items():
        assert torch.allclose(params[name], parameter.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(algorithm.final(params, start)["trunk.w"], params["trunk.w"] - start["trunk.w"])


def test_schedules_by_hand() -> None:
    assert [Schedule("constant").factor(r, 4) for r in range(4)] == [1, 1, 1, 1]
    assert [Schedule("linear").factor(r, 4) for r in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [Schedule("cosine").factor(r, 4) for r in range(4)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert [Schedule("constant", warmup=3).factor(r, 9) for r in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalSGD(learning_rate=0), "client.learning_rate must be > 0, got 0"),
        (lambda: LocalSGD(momentum=1.0), r"client.momentum must be in \[0, 1\), got 1.0"),
        (lambda: LocalSGD(head_scale=-1), "client.head_scale must be >= 0, got -1"),
        (lambda: LocalSGD(clip=0.0), "client.clip must be > 0, or null for no clipping, got 0.0"),
        (lambda: LocalSGD(momentum=0.0, nesterov=True), "client.nesterov needs client.momentum > 0, got 0.0"),
        (lambda: LocalAdam(beta1=1.0), r"client.beta1 must be in \[0, 1\), got 1.0"),
        (lambda: LocalAdamW(beta2=-0.1), r"client.beta2 must be in \[0, 1\), got -0.1"),
        (lambda: LocalAdam(eps=0.0), "client.eps must be > 0, got 0.0"),
        (lambda: Schedule("step"), "schedule.shape must be one of constant, cosine, linear, got step"),
    ],
)
def test_wrong_options_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PAIRS)
def test_three_clipped_steps_of_100000_coordinates_are_torchs(name: str, kind: str, compiling: bool) -> None:
    ours, theirs = PAIRS[name]
    rng = torch.Generator().manual_seed(3)
    start = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    grads = [draw(kind, rng) for _ in range(3)]
    moved, expected = after(ours, start, grads, compiling=compiling), as_torch(start, theirs, grads, ours.clip)
    for parameter, value in expected.items():
        assert torch.allclose(moved[parameter].double(), value, rtol=1e-5, atol=1e-6, equal_nan=True), parameter
    assert bool(moved["trunk.conv"].isnan().all()) == (kind == "not finite")


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_a_stack_of_clients_steps_as_each_alone_and_is_clipped_by_its_own_norm(name: str, compiling: bool) -> None:
    optimizer, rng = PAIRS[name][0], torch.Generator().manual_seed(4)
    starts = [{name: torch.randn(shape, generator=rng).double() for name, shape in SHAPES.items()} for _ in range(4)]
    kinds = ["usual", "huge", "not finite", "zero"]
    grads = [[{n: v.double() for n, v in draw(kind, rng).items()} for _ in range(3)] for kind in kinds]
    together = [{n: torch.stack([grads[k][step][n] for k in range(4)]) for n in SHAPES} for step in range(3)]
    stack = {n: torch.stack([start[n] for start in starts]) for n in SHAPES}
    stacked = after(optimizer.for_stack(), stack, together, compiling=compiling)
    for client, start in enumerate(starts):
        alone = after(optimizer, start, grads[client])
        for parameter, value in alone.items():
            assert torch.allclose(stacked[parameter][client], value, rtol=1e-12, atol=1e-12, equal_nan=True), (parameter, client)
        assert bool(alone["trunk.b"].isnan().any()) == (kinds[client] == "not finite")


def test_clipping_counts_trunk_and_heads_together_by_hand() -> None:
    grads = {"trunk.w": torch.tensor([3.0, 0.0]), "heads.w": torch.tensor([[4.0]]), "trunk.scalar": torch.tensor(0.0)}
    clipped = clip_by_norm(grads, 1.0, stacked=False)
    assert clipped["trunk.w"].tolist() == pytest.approx([0.6, 0.0], rel=1e-6)
    assert clipped["heads.w"].item() == pytest.approx(0.8, rel=1e-6)
    assert all(torch.equal(value, grads[name]) for name, value in clip_by_norm(grads, 5.1, stacked=False).items())
    # Two clients, the second of norm 1: it stays as it is.
    pair = {"trunk.w": torch.tensor([[3.0, 0.0], [0.6, 0.0]]), "trunk.scalar": torch.tensor([4.0, 0.8])}
    assert clip_by_norm(pair, 1.5, stacked=True)["trunk.scalar"].tolist() == pytest.approx([1.2, 0.8], rel=1e-6)


def test_heads_that_do_not_learn_do_not_count_in_the_norm() -> None:
    grads = {"trunk.w": torch.tensor([0.6]), "heads.w": torch.tensor([[1000.0]])}
    params = {"trunk.w": torch.zeros(1), "heads.w": torch.zeros(1, 1)}
    LocalSGD(momentum=0.0, weight_decay=0.0, head_scale=0.0, clip=1.0).step(params, grads, {}, torch.tensor(1.0))
    assert params["trunk.w"].item() == pytest.approx(-0.6)
    assert params["heads.w"].item() == 0


def test_a_round_of_nesterov_along_one_gradient_reaches_as_far_as_by_hand() -> None:
    # v_k sums to a_5 = (5 - .9 (1 - .9^5) / .1) / .1 = 13.1441, and a step is g + .9 v_k. Clipping does not count.
    for clip in (None, 0.1):
        sgd = LocalSGD(nesterov=True, clip=clip)
        reached = reach(sgd, ClientAlgorithm(), ["trunk.w", "heads.w"], steps=[5], learning_rate=0.5)
        assert reached["trunk.w"].item() == pytest.approx(0.5 * (5 + 0.9 * 13.1441))
        assert reached["heads.w"].item() == pytest.approx(0.1 * reached["trunk.w"].item())


def test_adamw_is_torchs_and_a_parameter_that_begins_later_counts_its_own_steps() -> None:
    rng = torch.Generator().manual_seed(1)
    params = {"trunk.w": torch.randn(50, 7, generator=rng), "heads.w": torch.randn(5, 3, generator=rng)}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    groups = [{"params": [theirs["trunk.w"]], "lr": 1e-2}, {"params": [theirs["heads.w"]], "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.999), weight_decay=0.05)
    algorithm = LocalAdamW(learning_rate=1e-2, beta1=0.8, weight_decay=0.05, head_scale=0.1)
    state = algorithm.init(params)
    for step in range(6):
        grads = {name: torch.randn(value.shape, generator=rng) for name, value in params.items()}
        moving = {name: value for name, value in params.items() if name == "heads.w" or step >= 3}
        for name, parameter in theirs.items():
            parameter.grad = grads[name].clone() if name in moving else None
        optimizer.step()
        algorithm.step(moving, grads, state, torch.tensor(1e-2))
    for name, parameter in theirs.items():
        assert torch.allclose(params[name], parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_a_gradient_of_other_strides_than_its_parameter_is_the_same_gradient(name: str) -> None:
    optimizer, rng = PAIRS[name][0], torch.Generator().manual_seed(5)
    start = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    start["trunk.conv"] = start["trunk.conv"].to(memory_format=torch.channels_last)
    grads = draw("usual", rng)
    alike = grads | {"trunk.conv": grads["trunk.conv"].to(memory_format=torch.channels_last)}
    one, other = after(optimizer, start, [grads]), after(optimizer, start, [alike])
    assert all(torch.allclose(one[parameter], other[parameter], rtol=1e-6, atol=1e-7) for parameter in SHAPES)
