from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.federation.algorithms.local_adamw import LocalAdamW
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.schedule import Schedule
from tests.conftest import clone


@given(st.floats(0.01, 0.5), st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.1]), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_steps_agree_with_torch(rate: float, momentum: float, weight_decay: float, compiling: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    start = {"trunk.w": torch.randn(3, 2, generator=rng), "heads.w": torch.randn(2, 2, generator=rng)}
    algorithm = LocalSGD(learning_rate=rate, momentum=momentum, weight_decay=weight_decay, head_scale=0.5)
    params, state = clone(start), algorithm.init(start)
    reference = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    groups = [{"params": [reference["trunk.w"]]}, {"params": [reference["heads.w"]], "lr": rate * 0.5}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=weight_decay)
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
        (lambda: Schedule("step"), "schedule.shape must be one of constant, cosine, linear, got step"),
    ],
)
def test_wrong_options_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_adamw_is_torchs_and_a_parameter_that_begins_later_counts_its_own_steps() -> None:
    rng = torch.Generator().manual_seed(1)
    params = {"trunk.w": torch.randn(50, 7, generator=rng), "heads.w": torch.randn(5, 3, generator=rng)}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    groups = [{"params": [theirs["trunk.w"]], "lr": 1e-2}, {"params": [theirs["heads.w"]], "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.999), weight_decay=0.05)
    algorithm = LocalAdamW(learning_rate=1e-2, momentum=0.8, weight_decay=0.05, head_scale=0.1)
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
