"""The laws that every balancer holds."""

import io
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from mtl.balancing.contract import Balancer, weighted_sum
from mtl.balancing.dwa import DWA
from mtl.balancing.gramian import gramian_of
from tests.balancing.problems import (
    COORDINATES,
    EVERY,
    FROM_GRADIENTS,
    FROM_GRAMIAN,
    STEPS,
    TASKS,
    Problem,
    advance,
    chosen,
    make_draws,
    make_problem,
    name,
    run,
    start,
)

# Solvers work in float64 to about 1e-11; what follows multiplies that by the size of weights and gradients.
CLOSE = {"rtol": 1e-7, "atol": 1e-8}
every_balancer = pytest.mark.parametrize("balancer", EVERY, ids=name)


@every_balancer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes_and_types_follow_the_input(balancer: Balancer, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = make_problem(*batch, dtype=dtype)
    directions, weights = run(balancer, problem)
    assert directions.shape == (STEPS, *batch, COORDINATES)
    assert weights.shape == (STEPS, *batch, TASKS)
    assert directions.dtype == weights.dtype == dtype
    assert directions.isfinite().all()
    assert weights.isfinite().all()


@every_balancer
def test_a_batch_of_problems_gives_what_each_gives_alone(balancer: Balancer) -> None:
    problem = make_problem(3, seed=1)
    problem = replace(problem, active=torch.rand(3, TASKS, generator=torch.Generator().manual_seed(0)) < 0.7)
    draws = make_draws(balancer, problem)
    stacked = run(balancer, problem, draws)
    for k in range(3):
        alone = Problem(problem.losses[:, k], problem.after[:, k], problem.gradients[:, k], problem.active[k])
        for whole, part in zip(stacked, run(balancer, alone, [draw[k] for draw in draws]), strict=True):
            torch.testing.assert_close(whole[:, k], part, **CLOSE)


@every_balancer
def test_tasks_in_another_order_give_weights_in_that_order(balancer: Balancer) -> None:
    problem = make_problem(seed=2)
    order = torch.tensor([3, 0, 4, 1, 2])
    draws = make_draws(balancer, problem)
    directions, weights = run(balancer, problem, draws)
    turned_directions, turned_weights = run(*chosen(balancer, problem, draws, order))
    torch.testing.assert_close(turned_weights, weights[:, order], **CLOSE)
    torch.testing.assert_close(turned_directions, directions, **CLOSE)


@every_balancer
@pytest.mark.parametrize("remaining", [(0, 1, 2, 4), (1, 3), (2,)])
def test_inactive_tasks_are_as_if_they_did_not_exist_even_if_not_finite(balancer: Balancer, remaining: tuple[int, ...]) -> None:
    problem = make_problem(seed=3)
    tasks = torch.tensor(remaining)
    active = torch.zeros(TASKS, dtype=torch.bool).index_fill(0, tasks, True)
    without = chosen(balancer, problem, make_draws(balancer, problem), tasks)
    spoiled = replace(
        problem,
        active=active,
        losses=problem.losses.masked_fill(~active, torch.nan),
        after=problem.after.masked_fill(~active, torch.nan),
        gradients=problem.gradients.masked_fill(~active[:, None], torch.nan),
    )
    directions, weights = run(balancer, spoiled)
    other_directions, other_weights = run(*without)
    torch.testing.assert_close(directions, other_directions, **CLOSE)
    torch.testing.assert_close(weights[:, tasks], other_weights, **CLOSE)
    assert (weights[:, ~active] == 0).all()


@every_balancer
def test_what_is_remembered_of_an_inactive_task_stays(balancer: Balancer) -> None:
    if isinstance(balancer, DWA):
        balancer = DWA(period=100)  # the end of an epoch closes the books of every task
    problem = make_problem(seed=4)
    draws = make_draws(balancer, problem)
    _, _, before = advance(balancer, start(balancer, problem), problem, draws, 0)
    active = torch.tensor([True, False, True, True, False])
    _, _, after = advance(balancer, before, replace(problem, active=active), draws, 1)
    for key, value in before.items():
        if value.shape[:1] == (TASKS,):
            torch.testing.assert_close(after[key][~active], value[~active], rtol=0, atol=0)


@every_balancer
def test_without_active_tasks_there_is_no_update_and_nothing_breaks(balancer: Balancer) -> None:
    problem = make_problem(2, seed=5)
    problem = replace(problem, active=torch.zeros_like(problem.active))
    directions, weights = run(balancer, problem)
    assert (directions == 0).all()
    assert (weights == 0).all()


@every_balancer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_finite_at_the_edges(balancer: Balancer, dtype: torch.dtype) -> None:
    problem = make_problem(dtype=dtype)
    zero_losses = replace(problem, losses=torch.zeros_like(problem.losses), after=torch.zeros_like(problem.after))
    equal_losses = replace(problem, losses=torch.full_like(problem.losses, 0.05), after=torch.full_like(problem.after, 0.05))
    no_gradient = replace(problem, gradients=torch.zeros_like(problem.gradients))
    one_zero = problem.gradients.clone()
    one_zero[..., 1, :] = 0
    same = problem.gradients[..., :1, :].expand_as(problem.gradients)
    opposite = same * torch.tensor([1, -1, 1, -1, 1], dtype=dtype)[:, None]
    tiny, huge = problem.gradients * 1e-12, problem.gradients * 1e8
    for edge in (
        problem,
        zero_losses,
        replace(zero_losses, gradients=no_gradient.gradients),
        equal_losses,
        no_gradient,
        *(replace(problem, gradients=gradients) for gradients in (one_zero, same, opposite, tiny, huge)),
    ):
        directions, weights = run(balancer, edge)
        assert directions.isfinite().all()
        assert weights.isfinite().all()


@every_balancer
def test_one_task_alone_is_descended(balancer: Balancer) -> None:
    problem = make_problem(seed=6)
    alone = chosen(balancer, problem, make_draws(balancer, problem), torch.tensor([2]))
    directions, weights = run(*alone)
    assert weights.shape == (STEPS, 1)
    assert (weights > 0).all()
    # At the first step: some smooth the gradients over steps.
    assert (directions[0] * problem.gradients[0, 2]).sum() > 0


@every_balancer
def test_a_saved_state_continues_bitwise(balancer: Balancer) -> None:
    problem = make_problem(2, seed=7)
    draws = make_draws(balancer, problem)
    straight, _ = run(balancer, problem, draws)
    state = start(balancer, problem)
    for step in range(STEPS):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        direction, _, state = advance(balancer, torch.load(file), problem, draws, step)
        assert torch.equal(direction, straight[step])


@every_balancer
def test_a_step_leaves_its_input_as_it_is(balancer: Balancer) -> None:
    problem = make_problem(2, seed=8)
    draws = make_draws(balancer, problem)
    _, _, state = advance(balancer, start(balancer, problem), problem, draws, 0)
    copy = {key: value.clone() for key, value in state.items()}
    first = advance(balancer, state, problem, draws, 1)
    second = advance(balancer, state, problem, draws, 1)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(state[key], copy[key]) for key in copy)


@pytest.mark.parametrize("balancer", FROM_GRAMIAN, ids=name)
def test_a_gramian_gives_the_same_weights_as_the_gradients(balancer: Balancer) -> None:
    problem = make_problem(3, seed=9)
    draw = make_draws(balancer, problem)[0]
    state = start(balancer, problem)
    direction, weights, _ = balancer.combine(state, problem.losses[0], problem.gradients[0], problem.active, draw)
    alone, _ = balancer.weigh(state, problem.losses[0], gramian_of(problem.gradients[0]), problem.active, draw)
    assert torch.equal(weights, alone)
    assert torch.equal(direction, weighted_sum(weights, problem.gradients[0]))


@pytest.mark.parametrize("balancer", FROM_GRADIENTS, ids=name)
def test_a_balancer_of_gradients_says_that_a_gramian_is_not_enough(balancer: Balancer) -> None:
    problem = make_problem()
    if type(balancer).weigh is Balancer.weigh:
        with pytest.raises(NotImplementedError, match=f"{type(balancer).__name__} works on gradients: call combine"):
            balancer.weigh(start(balancer, problem), problem.losses[0], None, problem.active, make_draws(balancer, problem)[0])
    assert balancer.needs == "gradients"


@every_balancer
def test_hyper_parameters_cannot_change_after_construction(balancer: Balancer) -> None:
    with pytest.raises(FrozenInstanceError):
        balancer.anything = 1  # type: ignore[attr-defined]
