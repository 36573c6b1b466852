"""What holds for every loss that the configuration knows, and for the variants below. A new loss is covered by its line there."""

import inspect
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mtl.losses.bce import BCE
from mtl.losses.pairs import PairLoss, TaskCounts, reduce_pairs
from mtl.losses.sphereface2 import SphereFace2
from mtl.run.members import PARTIAL

# Both kinds of label, one of them, the other, none.
POSITIVES, NEGATIVES = torch.tensor([2.0, 0.0, 5.0, 0.0]), torch.tensor([6.0, 8.0, 0.0, 0.0])
COUNTS = TaskCounts(POSITIVES, NEGATIVES)
T = len(POSITIVES)

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("bce", {"positive_weight": "balanced"}),
    ("focal", {"gamma": 0.3, "alpha": None}),
    ("asymmetric", {"gamma_positive": 0.3, "gamma_negative": 0.05, "clip": [0.0, 0.05, 0.5, 0.9]}),
    ("asymmetric", {"gamma_negative": 0.05, "clip": 0.0}),
    ("bce", {"scale": 16.0}),
    ("hinge", {"squared": True}),
    ("ldam", {"defer": 0.0, "scale": 1.0}),
]


def make(name: str, num_tasks: int = T, **options: Any) -> PairLoss:
    member = PARTIAL["loss"][name]
    target, changed = member if isinstance(member, tuple) else (member, {})
    if name == "by_kind":
        changed = {"num_exclusive": 2, "classes": SphereFace2, "attributes": BCE}
    loss: PairLoss = target(num_tasks, **{**changed, **options})
    return loss


def per_task_options() -> list[tuple[str, str, float]]:
    """Name of a loss, of an option that may be a list, and its default."""
    result = []
    for name, member in PARTIAL["loss"].items():
        for option in inspect.signature(member[0] if isinstance(member, tuple) else member).parameters.values():
            if list[float] in get_args(option.annotation):
                result.append((name, option.name, option.default))
    return result


def slopes(loss: PairLoss, logits: Tensor) -> list[Tensor]:
    """Derivatives of the positive and the negative terms by the logits."""
    return [torch.autograd.grad(term.sum(), logits, retain_graph=True)[0] for term in loss.terms(logits, COUNTS)]


every_loss = pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in PARTIAL["loss"]), *VARIANTS],
    ids=lambda value: value if isinstance(value, str) else " ".join(f"{k}={v}" for k, v in value.items()) or "default",
)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_values_and_gradients_are_finite_at_extreme_logits_and_for_any_counts(
    name: str, options: dict[str, Any], dtype: torch.dtype, progress: float
) -> None:
    loss = make(name, **options)
    # Near -88 and -95 sigmoid leaves the normal numbers of float32.
    levels = torch.tensor([-100, -95, -88, -20, -1, 0, 1, 20, 88, 100], dtype=dtype)
    logits = levels[:, None].repeat(1, T).requires_grad_()
    for term in loss.terms(logits, TaskCounts(POSITIVES, NEGATIVES, torch.tensor(progress))):
        assert term.shape == logits.shape
        assert term.isfinite().all()
        assert (term >= 0).all()
        for gradient in torch.autograd.grad(term.sum(), [logits, *loss.parameters()], retain_graph=True):
            assert gradient.isfinite().all()


@every_loss
def test_a_higher_score_never_costs_a_positive_more_or_a_negative_less(name: str, options: dict[str, Any]) -> None:
    loss = make(name, **options)
    logits = torch.cat([torch.linspace(-30, 30, 61), torch.linspace(-1, 1, 21)])[:, None].repeat(1, T).requires_grad_()
    positive, negative = slopes(loss, logits)
    assert (positive <= 0).all()
    assert (negative >= 0).all()


@every_loss
def test_at_zero_the_two_kinds_of_label_pull_apart(name: str, options: dict[str, Any]) -> None:
    # clip .5 and .9 say that a negative at p = 1/2 costs nothing.
    loss = make(name, **{**options, "clip": 0.05} if "clip" in options else options)
    logits = torch.zeros(1, T, requires_grad=True)
    positive, negative = slopes(loss, logits)
    assert (positive < 0).all()
    assert (negative > 0).all()


@pytest.mark.parametrize("name", PARTIAL["loss"])
@given(st.floats(-1, 1), st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_the_decision_rises_with_the_score(name: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    decision = make(name).decision(torch.tensor([[low] * T, [high] * T]))
    assert decision.shape == (2, T)
    assert (decision[1] >= decision[0]).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bce", {}),
        ("class_balanced", {}),
        ("focal", {"alpha": None}),
        ("focal", {"alpha": 0.5}),
        ("asymmetric", {"gamma_positive": 2, "gamma_negative": 2, "clip": 0}),
        ("logit_adjusted", {}),
        ("ldam", {}),
        ("hinge", {}),
        ("hinge", {"squared": True}),
        ("sphereface2", {"balance": 0.5, "margin": 0.0}),
        ("uniface", {"margin": 0.0}),
    ],
)
def test_with_both_kinds_treated_alike_yes_is_where_a_positive_costs_less(name: str, options: dict[str, Any]) -> None:
    loss = make(name, **options)
    logits = torch.linspace(-0.99, 0.99, 100)[:, None].repeat(1, T)
    positive, negative = loss.terms(logits, TaskCounts(torch.full((T,), 7.0), torch.full((T,), 7.0), torch.ones(())))
    assert torch.equal(loss.decision(logits) > 0, positive < negative)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bce", {"positive_weight": [1.0] * T}),
        ("class_balanced", {"beta": 0}),
        ("focal", {"gamma": 0, "alpha": None}),
        ("asymmetric", {"gamma_positive": 0, "gamma_negative": 0, "clip": 0}),
        ("logit_adjusted", {"tau": 0}),
        ("ldam", {"margin": 0, "scale": 1}),
        ("ldam", {"margin": 0, "scale": 1, "beta": 0, "defer": 0}),
    ],
)
def test_the_special_case_is_bce(name: str, options: dict[str, Any]) -> None:
    logits = torch.linspace(-100, 100, 401)[:, None].repeat(1, T).requires_grad_()
    loss = make(name, **options)
    for result, expected in zip(loss.terms(logits, COUNTS), BCE(T).terms(logits, COUNTS), strict=True):
        torch.testing.assert_close(result, expected)
    for result, expected in zip(slopes(loss, logits), slopes(BCE(T), logits), strict=True):
        torch.testing.assert_close(result, expected)


@every_loss
def test_padding_and_unknown_labels_have_no_influence_even_if_not_finite(name: str, options: dict[str, Any]) -> None:
    loss = make(name, **options)
    rng = torch.Generator().manual_seed(1)
    logits = torch.rand(6, T, generator=rng)
    spoiled = logits.clone()
    spoiled[5] = torch.nan
    spoiled[2, 1] = torch.inf
    targets = torch.rand(6, T, generator=rng) < 0.5
    mask = torch.ones(6, T, dtype=torch.bool)
    mask[2, 1] = False
    valid = torch.tensor([True] * 5 + [False])
    clean, dirty = (reduce_pairs(*loss.terms(z, COUNTS), targets, mask, valid) for z in (logits, spoiled))
    assert torch.equal(clean.tasks, dirty.tasks)
    assert clean.tasks.isfinite().all()
    targets[5], targets[2, 1] = ~targets[5], ~targets[2, 1]
    other = reduce_pairs(*loss.terms(logits, COUNTS), targets, mask, valid)
    assert torch.equal(clean.tasks, other.tasks)


@pytest.mark.parametrize("name", PARTIAL["loss"])
def test_tasks_in_another_order_give_losses_in_that_order(name: str) -> None:
    loss, order = make(name), torch.tensor([1, 0, 3, 2])  # kinds stay together
    logits = torch.rand(5, T)
    straight = loss.terms(logits, COUNTS)
    permuted = loss.terms(logits[:, order], TaskCounts(POSITIVES[order], NEGATIVES[order]))
    for result, expected in zip(straight, permuted, strict=True):
        torch.testing.assert_close(result[:, order], expected)


@pytest.mark.parametrize(("name", "option", "default"), per_task_options())
def test_a_list_gives_each_subtask_its_own_number(name: str, option: str, default: float) -> None:
    numbers = [default * factor for factor in (0.9, 0.8, 0.7, 0.4)]
    logits = torch.linspace(-0.9, 0.9, 7)[:, None].repeat(1, T)

    def outputs(progress: float, **options: Any) -> Tensor:
        loss = make(name, **options)
        terms = loss.terms(logits, TaskCounts(POSITIVES, NEGATIVES, torch.tensor(progress)))
        return torch.stack([*terms, loss.decision(logits)])

    for progress in (0.75, 1.0):
        result = outputs(progress, **{option: numbers})
        for t, number in enumerate(numbers):
            torch.testing.assert_close(result[..., t], outputs(progress, **{option: number})[..., t])
    assert any(not torch.equal(outputs(p), outputs(p, **{option: numbers})) for p in (0.75, 1.0)), "the option has no effect"


@pytest.mark.parametrize(("name", "option", "default"), per_task_options())
def test_a_list_of_the_wrong_length_is_refused(name: str, option: str, default: float) -> None:
    with pytest.raises(ValueError, match=f"loss.{option} must be one number or a list of {T}, .* got a list of 3"):
        make(name, **{option: [default] * 3})


def test_the_options_that_may_be_lists_are_found() -> None:
    assert {("focal", "gamma", 2.0), ("focal", "alpha", 0.25), ("bce", "positive_weight", 1.0)} <= set(per_task_options())


class Reduced(nn.Module):
    """A loss as a module that can be called, so that its parameters can be stacked."""

    def __init__(self, loss: PairLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, positives: Tensor, negatives: Tensor, progress: Tensor) -> Tensor:
        positive, negative = self.loss.terms(logits, TaskCounts(positives, negatives, progress))
        return (positive + 2 * negative).sum()


@every_loss
def test_stacked_clients_with_counts_of_their_own_get_what_each_gets_alone(name: str, options: dict[str, Any]) -> None:
    module = Reduced(make(name, **options))
    params = {key: torch.stack([value.detach(), value.detach() + 1]) for key, value in module.named_parameters()}
    logits = torch.rand(2, 5, T) * 2 - 1
    positives, negatives = torch.stack([POSITIVES, NEGATIVES.flip(0)]), torch.stack([NEGATIVES, POSITIVES.flip(0)])
    progress = torch.tensor([0.2, 0.9])

    def value(params: dict[str, Tensor], *rest: Tensor) -> Tensor:
        result: Tensor = functional_call(module, params, rest)
        return result

    both = vmap(grad(value, argnums=(0, 1)))(params, logits, positives, negatives, progress)
    for client in range(2):
        client_params = {key: stacked[client] for key, stacked in params.items()}
        alone = grad(value, argnums=(0, 1))(client_params, *(part[client] for part in (logits, positives, negatives, progress)))
        torch.testing.assert_close(both[1][client], alone[1])
        for key in params:
            torch.testing.assert_close(both[0][key][client], alone[0][key])


@every_loss
def test_it_compiles_in_one_piece(name: str, options: dict[str, Any]) -> None:
    module = Reduced(make(name, **options))
    torch._dynamo.reset()  # it counts what it compiled for the other losses
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    arguments = (torch.rand(5, T), POSITIVES, NEGATIVES, torch.ones(()))
    torch.testing.assert_close(compiled(*arguments), module(*arguments))


@pytest.mark.parametrize("name", PARTIAL["loss"])
def test_only_parameters_are_saved(name: str) -> None:
    loss = make(name)
    assert set(loss.state_dict()) == {key for key, _ in loss.named_parameters()}
