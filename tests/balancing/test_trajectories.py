"""The trajectories of Jacobian descent's paper (`experiments.trajectories`): where they go by hand, and where torchjd's go.

In two parameters much has a closed form. On EWQ the gradients are (2 x1, 0) and (0, 2 x2), with eta the learning rate:

    Mean, UPGrad, DualProj, GradDrop, PCGrad    x shrinks by 1 - eta
    Aligned-MTL, IMTL-G                         both |x_i| lose the same, so that their difference stays: the longer never gets to 0
    MGDA                                        x1^2 - x2^2 shrinks by 1 - 4 eta^2 w1 w2 only: it stops on an axis
    Nash-MTL                                    each |x_i| loses a fixed step, and then swings around 0

The second start has x1 = 0 and so a task without a gradient, which the published MGDA, CAGrad and Nash-MTL do not leave; ours ignore it.
"""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
import torchjd.aggregation as jd
from torch import Tensor
from torchjd.linalg import QuadprogProjector

from experiments.trajectories import (
    CQF,
    EWQ,
    METHODS,
    Method,
    Problem,
    Trajectory,
    draw_figure,
    evaluate,
    make_draws,
    pareto_set,
    rows_of,
    run,
    shortest_in_hull_of_two,
)
from mtl.balancing.conflict_free import ConFIG

# torchjd's own regularisation of UPGrad and DualProj is turned down, as in `test_against_torchjd`.
PROJECTOR = QuadprogProjector(norm_eps=0.0, reg_eps=1e-13)
AGGREGATORS: dict[str, jd.Aggregator] = {
    "Mean": jd.Mean(),
    "MGDA": jd.MGDA(),
    "DualProj": jd.DualProj(projector=PROJECTOR),
    "IMTL-G": jd.IMTLG(),
    "Aligned-MTL": jd.AlignedMTL(),
    "UPGrad": jd.UPGrad(projector=PROJECTOR),
    "PCGrad": jd.PCGrad(),
    "ConFIG": jd.ConFIG(),
}
STEPS = 60


@cache
def whole(problem: Problem, name: str) -> Trajectory:
    return run(problem, METHODS[name])


def gains(problem: Problem, trajectory: Trajectory) -> Tensor:
    """g_i . d at every step, in lengths of g_i and d, [steps, S, 2 tasks]; 0 where either is 0."""
    _, gradients = evaluate(problem, trajectory.points[:-1])
    length = gradients.norm(dim=-1) * trajectory.directions.norm(dim=-1, keepdim=True)
    along = (gradients @ trajectory.directions[..., None]).squeeze(-1)
    return torch.where(length > 0, along / torch.where(length > 0, length, 1), 0)


def rises(problem: Problem, trajectory: Trajectory) -> Tensor:
    """How much every objective rises in every step, [steps, S, 2 tasks]."""
    return evaluate(problem, trajectory.points)[0].diff(dim=0)


def published_losses(name: str, x: Tensor) -> Tensor:
    """As in constants.py and objectives.py of TorchJD/trajectories."""
    if name == "EWQ":
        return x**2
    theta = math.pi / 16
    cos, sin = math.cos(theta), math.sin(theta)
    b1 = x.new_tensor([[cos, -sin], [sin, cos]]) @ torch.diag(x.new_tensor([1.0, 0.1]))
    b2 = x.new_tensor([[cos, sin], [-sin, cos]]) @ torch.diag(x.new_tensor([3.0**0.5, 0.1]))
    first, second = x - x.new_tensor([1.0, 0.0]), x - x.new_tensor([-1.0, 0.0])
    return torch.stack([first @ (b1 @ b1.T) @ first, second @ (b2 @ b2.T) @ second])


@pytest.mark.parametrize("problem", [EWQ, CQF], ids=lambda problem: problem.name)
def test_objectives_and_gradients_are_the_published_ones(problem: Problem) -> None:
    losses, gradients = evaluate(problem, problem.starts)
    for i, start in enumerate(problem.starts):
        torch.testing.assert_close(losses[i], published_losses(problem.name, start), rtol=1e-12, atol=1e-12)
        jacobian = torch.autograd.functional.jacobian(lambda x: published_losses(problem.name, x), start)
        torch.testing.assert_close(gradients[i], jacobian, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Mean", "UPGrad", "DualProj", "GradDrop", "PCGrad"])
def test_orthogonal_gradients_shrink_geometrically(name: str) -> None:
    shrunk = (1 - EWQ.learning_rate) ** torch.arange(EWQ.steps + 1, dtype=torch.float64)
    torch.testing.assert_close(whole(EWQ, name).points, shrunk[:, None, None] * EWQ.starts, rtol=1e-11, atol=0)


def test_aligned_mtl_keeps_what_one_objective_is_ahead_by() -> None:
    """d_i = min(|x1|, |x2|) sign(x_i): the shorter shrinks by 1 - eta, the longer loses as much. Where x1 = 0 the other is the shortest."""
    start = EWQ.starts.abs()
    short = torch.where(start.amin(-1) > 0, start.amin(-1), start.amax(-1))
    lost = short * (1 - (1 - EWQ.learning_rate) ** EWQ.steps)
    expected = (start - lost[:, None]).clamp_min(0) * EWQ.starts.sign()
    torch.testing.assert_close(whole(EWQ, "Aligned-MTL").points[-1], expected, rtol=1e-11, atol=1e-12)


def test_imtl_g_ends_on_an_axis() -> None:
    """d_i = 2 h sign(x_i), h = |x1 x2| / (|x1| + |x2|): |x1| - |x2| stays, and the shorter goes to 0."""
    points = whole(EWQ, "IMTL-G").points
    expected = [(1, 0), (0, -3 * 0.7**50), (-4 * 0.85**50, 4 * 0.85**50), (0, 1), (-2.75, 0)]
    torch.testing.assert_close(points[-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-6)
    ahead = (points[..., 0].abs() - points[..., 1].abs())[:, [0, 2, 3, 4]]
    torch.testing.assert_close(ahead, ahead[0].expand_as(ahead), rtol=0, atol=1e-12)


def test_mgda_stops_on_an_axis() -> None:
    """d_i = 2 w_i x_i, w_1 = x2^2 / |x|^2: x1^2 - x2^2 shrinks by 1 - 4 eta^2 w_1 w_2, and w_1 w_2 <= 1/4."""
    points = whole(EWQ, "MGDA").points
    square = points[:, [0, 2, 3, 4]] ** 2
    ahead = square[..., 0] - square[..., 1]
    product = (square.prod(-1) / square.sum(-1) ** 2)[:-1]
    torch.testing.assert_close(ahead[1:], ahead[:-1] * (1 - 4 * EWQ.learning_rate**2 * product), rtol=0, atol=1e-12)
    least = ahead[0].abs() * (1 - EWQ.learning_rate**2) ** EWQ.steps
    assert (square[-1].amax(-1) >= least).all()
    assert (points[-1, [0, 3, 4]].abs().amin(-1) < 2e-3).all()
    torch.testing.assert_close(points[-1, 2].abs(), torch.full((2,), 4 * 0.925**50, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(points[-1, 1], torch.tensor([0.0, -3 * 0.85**50], dtype=torch.float64), rtol=1e-9, atol=0)


def test_nash_mtl_swings_around_the_optimum() -> None:
    """d_i = sign(x_i) / sqrt 2: after floor(|x_i| / s) steps of length s what is left of it alternates between r and r - s."""
    size = 2 * EWQ.learning_rate / math.sqrt(2)
    chosen = [0, 2, 3, 4]
    start = EWQ.starts[chosen]
    steps = torch.arange(EWQ.steps + 1, dtype=torch.float64)[:, None, None]
    straight = (start.abs() / size).floor()
    left = start.abs() - straight * size
    after = steps - straight
    expected = torch.where(after <= 0, start.abs() - steps * size, torch.where(after % 2 == 0, left, left - size)) * start.sign()
    torch.testing.assert_close(whole(EWQ, "Nash-MTL").points[:, chosen], expected, rtol=0, atol=1e-9)


def test_nash_mtl_takes_steps_of_one_length_along_the_sum_of_unit_gradients() -> None:
    """Two tasks bargain for d = (g_1 / |g_1| + g_2 / |g_2|), clipped to length 1, so that it never settles."""
    trajectory = run(CQF, METHODS["Nash-MTL"], steps=STEPS)
    _, gradients = evaluate(CQF, trajectory.points[:-1])
    units = gradients / gradients.norm(dim=-1, keepdim=True)
    expected = torch.nn.functional.normalize(units.sum(-2), dim=-1)
    torch.testing.assert_close(trajectory.directions, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("problem", "steps"), [(EWQ, EWQ.steps), (CQF, STEPS)], ids=["EWQ", "CQF"])
def test_cagrad_helps_the_worst_off_most(problem: Problem, steps: int) -> None:
    """max_d min_i g_i . d over |d - g_0| = c |g_0| in the plane: d is off g_0 along g_1, along g_2, or where both gain the same."""
    trajectory = run(problem, METHODS["CAGrad"], steps=steps)
    _, gradients = evaluate(problem, trajectory.points[:-1])
    there = (gradients.norm(dim=-1) > 0).all(-1)
    gradients, directions = gradients[there], trajectory.directions[there]
    mean = gradients.mean(-2)
    radius = 0.5 * mean.norm(dim=-1, keepdim=True)
    apart = gradients[:, 0] - gradients[:, 1]
    toward = torch.nn.functional.normalize(apart, dim=-1)
    tie = -(apart * mean).sum(-1, keepdim=True) / (radius * apart.norm(dim=-1, keepdim=True))
    across = toward.flip(-1) * toward.new_tensor([-1, 1]) * (1 - tie**2).clamp_min(0).sqrt()
    offsets = [*torch.nn.functional.normalize(gradients, dim=-1).unbind(-2)]
    offsets += [torch.where(tie.abs() <= 1, tie * toward + side * across, offsets[0]) for side in (1, -1)]
    candidates = mean[:, None] + radius[:, None] * torch.stack(offsets, -2)
    best = (candidates @ gradients.mT).amin(-1).amax(-1)
    scale = gradients.norm(dim=-1).amax(-1) ** 2
    result = (gradients @ directions[..., None]).squeeze(-1).amin(-1)
    assert ((result - best).abs() <= 1e-6 * scale).all()
    assert ((directions - mean).norm(dim=-1, keepdim=True) <= radius * (1 + 1e-6)).all()


def test_cagrad_shrinks_a_tie_and_a_single_objective_geometrically() -> None:
    """From (-4, 4) and (0, -3) g_w is along g_0, so that d = (1 + c) g_0, with g_0 = x."""
    points = whole(EWQ, "CAGrad").points[-1]
    shrunk = (1 - 1.5 * EWQ.learning_rate) ** EWQ.steps
    torch.testing.assert_close(points[[1, 2]], shrunk * EWQ.starts[[1, 2]], rtol=1e-6, atol=1e-12)


def test_the_mean_goes_to_one_point_of_the_pareto_set() -> None:
    """x <- x* + (I - eta (A_1 + A_2)) (x - x*), with x* = (A_1 + A_2)^-1 (A_1 u_1 + A_2 u_2) from every start."""
    optimum = pareto_set(CQF, torch.tensor([0.5], dtype=torch.float64))
    contraction = torch.eye(2, dtype=torch.float64) - CQF.learning_rate * CQF.matrices.sum(0)
    expected = optimum + (CQF.starts - optimum) @ torch.linalg.matrix_power(contraction, CQF.steps)
    torch.testing.assert_close(whole(CQF, "Mean").points[-1], expected, rtol=0, atol=1e-11)
    assert torch.linalg.eigvalsh(contraction).abs().max() < 1


def test_the_pareto_set_is_where_gradients_cancel() -> None:
    optimal = pareto_set(CQF, torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    assert (shortest_in_hull_of_two(evaluate(CQF, optimal)[1]) < 1e-12).all()


@pytest.mark.parametrize("name", list(AGGREGATORS))
@pytest.mark.parametrize(("problem", "steps"), [(EWQ, EWQ.steps), (CQF, STEPS)], ids=["EWQ", "CQF"])
def test_torchjd_goes_the_same_way_step_for_step(problem: Problem, steps: int, name: str) -> None:
    """IMTL-G: torchjd's pseudo-inverse drops the shorter of two gradients 1e8 apart, as they are at the end of EWQ."""
    method = METHODS.get(name, Method(ConFIG()))
    if (problem, name) == (EWQ, "IMTL-G"):
        steps = 30
    trajectory = run(problem, method, steps=steps)
    for i, start in enumerate(problem.starts):
        # Frank-Wolfe gives all weight to the task without a gradient.
        if name == "MGDA" and not start.all():
            continue
        point, expected = start, [start]
        for _ in range(steps):
            point = point - trajectory.rate * AGGREGATORS[name](evaluate(problem, point)[1])
            expected.append(point)
        torch.testing.assert_close(trajectory.points[:, i], torch.stack(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["GradDrop", "RLW"])
@pytest.mark.parametrize("problem", [EWQ, CQF], ids=["EWQ", "CQF"])
def test_torchjd_goes_the_same_way_for_the_same_draws(problem: Problem, name: str) -> None:
    aggregator = jd.GradDrop() if name == "GradDrop" else jd.Random()
    sample = torch.rand if name == "GradDrop" else torch.randn
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([sample(2, dtype=torch.float64) for _ in range(problem.steps)])
        trajectory = run(problem, METHODS[name], draws=draws if name == "GradDrop" else torch.special.ndtr(draws))
        for i, point in enumerate(problem.starts):
            torch.manual_seed(0)
            for step in range(problem.steps):
                torch.testing.assert_close(trajectory.points[step, i], point, rtol=1e-6, atol=1e-9)
                point = point - trajectory.rate * aggregator(evaluate(problem, point)[1])


# torchjd 0.18.0 in float64, all 500 steps. Aligned-MTL from (1, 6) is left out, see `test_aligned_mtl_stalls...`.
ENDS = {
    "MGDA": [(0.671540, 1.462414), (-0.023595, 4.559084), (0.370340, 2.791349), (-0.032975, 4.381393)],
    "DualProj": [(0.145844, 3.766930), (-0.060425, 4.361310), (-0.107632, 4.124292), (-0.060991, 4.344578)],
    "IMTL-G": [(0.557424, 1.970455), (-0.043808, 4.319882), (0.093034, 3.979726), (-0.043867, 4.318535)],
    "UPGrad": [(0.275736, 3.211944), (-0.047223, 4.319187), (-0.181120, 3.890594), (-0.047260, 4.318223)],
    "Aligned-MTL": [(-0.123060, 4.016448), (-0.602473, 7.200809), (-0.123977, 4.014213)],
}


@pytest.mark.parametrize("name", list(ENDS))
def test_conflicting_objectives_end_where_torchjd_does(name: str) -> None:
    expected = torch.tensor(ENDS[name], dtype=torch.float64)
    torch.testing.assert_close(whole(CQF, name).points[-1, : len(expected)], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "largest"), [("UPGrad", 1e-3), ("IMTL-G", 1e-3), ("DualProj", 2e-2), ("MGDA", 5e-2)])
def test_gradients_cancel_at_the_end(name: str, largest: float) -> None:
    """From 0.26, 1.2, 0.57 and 2.3 at the starts. MGDA is slow where both gradients point the same way and one is short."""
    _, gradients = evaluate(CQF, whole(CQF, name).points[-1])
    assert (shortest_in_hull_of_two(gradients) < largest).all()


def test_aligned_mtl_stalls_where_gradients_are_parallel() -> None:
    """|d| = sqrt(l_min / 2) goes to 0 with the angle between the gradients, agreeing ones too: from (-1, 7) it stops off the Pareto set,
    until rounding takes it past. The published run, in float32, is past it after 150 steps.
    """
    points, directions, _ = whole(CQF, "Aligned-MTL")
    _, gradients = evaluate(CQF, points[:-1])
    trace = gradients.square().sum((-2, -1))
    determinant = torch.linalg.det(gradients) ** 2
    smallest = 2 * determinant / (trace + (trace**2 - 4 * determinant).clamp_min(0).sqrt())
    as_long = torch.isclose(directions.norm(dim=-1), (smallest / 2).sqrt(), rtol=1e-6, atol=1e-6)
    assert as_long[:, :3].all()
    # From (1, 6) l_min rounds to 0 in one step, and the update is sqrt(l_max / 2) long.
    assert (smallest <= 1e-14 * trace)[~as_long].all()
    _, (first, second) = evaluate(CQF, points[-1, 1])
    assert torch.cosine_similarity(first, second, dim=0) > 1 - 1e-10
    assert shortest_in_hull_of_two(torch.stack([first, second])) > 0.3


@pytest.mark.parametrize("problem", [EWQ, CQF], ids=["EWQ", "CQF"])
@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "MGDA", "IMTL-G"])
def test_no_update_conflicts_with_a_gradient(problem: Problem, name: str) -> None:
    """Up to the rounding of gradients that nearly cancel."""
    trajectory = whole(problem, name)
    _, gradients = evaluate(problem, trajectory.points[:-1])
    along = (gradients @ trajectory.directions[..., None]).squeeze(-1)
    assert (along >= -1e-11 * gradients.norm(dim=-1).amax(-1, keepdim=True) ** 2).all()


@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "MGDA", "IMTL-G", "Mean"])
def test_every_objective_falls_at_every_step_where_none_conflict(name: str) -> None:
    losses, _ = evaluate(EWQ, whole(EWQ, name).points)
    falls = losses[1:] < losses[:-1]
    assert falls[..., 1].all()
    assert (falls[..., 0] == (EWQ.starts[:, 0] != 0)).all()


@pytest.mark.parametrize("name", ["MGDA", "IMTL-G"])
def test_every_objective_falls_at_every_step_where_they_conflict(name: str) -> None:
    """IMTL-G gets within rounding of the Pareto set."""
    assert (rises(CQF, whole(CQF, name)) < 1e-12).all()


@pytest.mark.parametrize("name", ["UPGrad", "DualProj"])
def test_what_an_objective_rises_by_is_of_second_order_in_the_rate(name: str) -> None:
    """f_i falls by eta g_i . d - eta^2 d A_i d, of which the first is not below zero but may be zero: that is all DualProj promises in a
    conflict. A tenth of the rate leaves a hundredth of the largest rise.
    """
    at_rate = rises(CQF, run(CQF, METHODS[name], steps=100)).amax()
    slower = rises(CQF, run(CQF, METHODS[name], steps=100, learning_rate=CQF.learning_rate / 10)).amax()
    assert 5e-3 < at_rate < 8e-3
    assert slower < at_rate / 50


def test_upgrad_lowers_both_objectives_at_every_step_but_a_few() -> None:
    """Unlike DualProj, its updates gain on both sides of a conflict: only where curvature eats that up does one rise."""
    risen = (rises(CQF, whole(CQF, "UPGrad")) > 1e-12).any(-1).sum(0)
    assert risen[1:].tolist() == [1, 0, 0]
    assert risen[0] < 60
    assert ((rises(CQF, whole(CQF, "DualProj")) > 1e-12).any(-1).sum(0) > 100).all()


@pytest.mark.parametrize(("name", "worst"), [("Mean", -0.5), ("CAGrad", -0.3), ("Aligned-MTL", -0.1), ("GradDrop", -0.5)])
def test_others_do_conflict(name: str, worst: float) -> None:
    """The paper's table of properties; for CAGrad with c < 1."""
    assert gains(CQF, run(CQF, METHODS[name], steps=100)).min() < worst


def test_every_method_gets_rows_and_a_panel(tmp_path: Path) -> None:
    trajectories = {
        problem.name: {name: run(problem, method, draws=make_draws(method.balancer, 3)) for name, method in METHODS.items()}
        for problem in (EWQ, CQF)
    }
    rows = [row for problem in (EWQ, CQF) for name in METHODS for row in rows_of(problem, name, trajectories[problem.name][name])]
    assert len(rows) == len(METHODS) * (5 + 4)
    assert rows[0].startswith("| EWQ | Mean | (3, -2) | (2.3744, -1.5829) |")
    draw_figure(trajectories, tmp_path / "made" / "trajectories.png")
    assert (tmp_path / "made" / "trajectories.png").stat().st_size > 10_000
