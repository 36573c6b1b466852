"""The trajectories of Jacobian descent's paper: two quadratic objectives in two parameters, that agree or conflict.

    python -m experiments.trajectories [--output runs/trajectories.png]

    f_i(x) = (x - u_i)^T A_i (x - u_i)

EWQ, element-wise quadratic: f = (x1^2, x2^2); gradients are orthogonal and nothing conflicts. CQF, convex quadratic form: A_i = B_i B_i^T,
B_1 = R(pi/16) diag(1, .1), B_2 = R(-pi/16) diag(sqrt 3, .1), R a rotation, u_1 = (1, 0), u_2 = (-1, 0).

Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, arXiv 2406.16232v3, equation 14. The starts, learning rates,
numbers of steps and each method's multiple of the rate are those of github.com/TorchJD/trajectories. Departure: float64 instead of float32.

Draws what the paper draws and prints where every run ends, how far the gradients are from cancelling there (the length of the shortest
vector in their hull, 0 on the Pareto set), and the largest rise of an objective in one step. Takes about fifteen seconds on one core.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtl.balancing.aligned_mtl import AlignedMTL
from mtl.balancing.cagrad import CAGrad
from mtl.balancing.contract import Balancer
from mtl.balancing.dualproj import DualProj
from mtl.balancing.graddrop import GradDrop
from mtl.balancing.imtl_g import IMTLG
from mtl.balancing.mgda import MGDA
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.upgrad import UPGrad
from mtl.balancing.weighting import RLW, Fixed


@dataclass(frozen=True, eq=False)
class Problem:
    """matrices: A, float64 [2 tasks, 2, 2]; centres: u, [2 tasks, 2]; starts: [S, 2]."""

    name: str
    matrices: Tensor
    centres: Tensor
    starts: Tensor
    learning_rate: float
    steps: int


class Method(NamedTuple):
    """rate: multiple of the problem's learning rate."""

    balancer: Balancer
    rate: float = 1.0


class Trajectory(NamedTuple):
    """points: [steps + 1, S, 2]; directions: [steps, S, 2]; rate: points[t + 1] = points[t] - rate * directions[t]."""

    points: Tensor
    directions: Tensor
    rate: float


def float64(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def rotated(angle: float, long: float, short: float) -> Tensor:
    """B B^T with B = R(angle) diag(long, short), [2, 2]."""
    cos, sin = math.cos(angle), math.sin(angle)
    root = float64((cos, -sin), (sin, cos)) @ float64((long, 0), (0, short))
    return root @ root.mT


EWQ = Problem(
    "EWQ",
    torch.diag_embed(torch.eye(2, dtype=torch.float64)),
    torch.zeros(2, 2, dtype=torch.float64),
    float64((3, -2), (0, -3), (-4, 4), (-3, 4), (-3.5, -0.75)),
    learning_rate=0.075,
    steps=50,
)
CQF = Problem(
    "CQF",
    torch.stack([rotated(math.pi / 16, 1, 0.1), rotated(-math.pi / 16, math.sqrt(3), 0.1)]),
    float64((1, 0), (-1, 0)),
    float64((0.5, 0.5), (-1, 7), (0, 0), (1, 6)),
    learning_rate=0.05,
    steps=500,
)
METHODS = {
    "Mean": Method(Fixed((0.5, 0.5))),
    "MGDA": Method(MGDA()),
    "DualProj": Method(DualProj()),
    "GradDrop": Method(GradDrop(), 0.5),
    "IMTL-G": Method(IMTLG(), 2.0),
    "CAGrad": Method(CAGrad(c=0.5)),
    "RLW": Method(RLW()),
    "Nash-MTL": Method(NashMTL(), 2.0),
    "Aligned-MTL": Method(AlignedMTL()),
    "UPGrad": Method(UPGrad()),
    "PCGrad": Method(PCGrad(), 0.5),
}
# With two tasks PCGrad is twice UPGrad: the paper does not draw it either.
DRAWN = tuple(name for name in METHODS if name != "PCGrad")


def evaluate(problem: Problem, points: Tensor) -> tuple[Tensor, Tensor]:
    """points: [..., 2]; returns losses [..., 2 tasks] and their gradients [..., 2 tasks, 2]."""
    offset = points[..., None, :] - problem.centres
    half = (problem.matrices @ offset[..., None]).squeeze(-1)
    return (half * offset).sum(-1), 2 * half


def make_draws(balancer: Balancer, steps: int) -> Tensor:
    """[steps, *draw_shape]; like the paper's, the same for every start."""
    rng = torch.Generator().manual_seed(0)
    return torch.rand(steps, *balancer.draw_shape(2, 2), generator=rng, dtype=torch.float64)


@torch.inference_mode()
def run(
    problem: Problem,
    method: Method,
    *,
    steps: int | None = None,
    draws: Tensor | None = None,
    learning_rate: float | None = None,
) -> Trajectory:
    """From all starts of the problem. draws: [steps, *draw_shape]; learning_rate: instead of the problem's."""
    balancer, points = method.balancer, problem.starts
    rate = method.rate * (learning_rate or problem.learning_rate)
    draws = make_draws(balancer, steps or problem.steps) if draws is None else draws
    losses, gradients = evaluate(problem, points)
    state = balancer.init(gradients if balancer.needs == "gradients" else losses)
    active = torch.ones(losses.shape, dtype=torch.bool)
    visited, directions = [points], []
    for draw in draws:
        losses, gradients = evaluate(problem, points)
        direction, _, state = balancer.combine(state, losses, gradients, active, draw.expand(len(points), *draw.shape))
        points = points - rate * direction
        visited.append(points)
        directions.append(direction)
    return Trajectory(torch.stack(visited), torch.stack(directions), rate)


def shortest_in_hull_of_two(gradients: Tensor) -> Tensor:
    """gradients: [..., 2 tasks, 2]; returns min over w in [0, 1] of |w g_1 + (1 - w) g_2|, [...]."""
    first, second = gradients.unbind(-2)
    apart = first - second
    square = (apart * apart).sum(-1)
    weight = torch.where(square > 0, -(second * apart).sum(-1) / torch.where(square > 0, square, 1), 0).clamp(0, 1)
    shortest = torch.lerp(second, first, weight[..., None])
    return shortest.square().sum(-1).sqrt()


def pareto_set(problem: Problem, weight: Tensor) -> Tensor:
    """weight: [N], in (0, 1), of the first objective; returns the minima of the weighted sums, [N, 2]."""
    weights = torch.stack([weight, 1 - weight], -1)[..., None, None]
    right = weights * problem.matrices @ problem.centres[..., None]
    solution: Tensor = torch.linalg.solve((weights * problem.matrices).sum(1), right.sum(1))
    return solution.squeeze(-1)


def rows_of(problem: Problem, name: str, trajectory: Trajectory) -> list[str]:
    """One row of the table per start."""
    losses, gradients = evaluate(problem, trajectory.points)
    left = shortest_in_hull_of_two(gradients[-1]).tolist()
    rises = losses.diff(dim=0).amax((0, 2)).clamp_min(0).tolist()
    ends = zip(problem.starts.tolist(), trajectory.points[-1].tolist(), left, rises, strict=True)
    return [
        f"| {problem.name} | {name} | ({a:g}, {b:g}) | ({x1:.4f}, {x2:.4f}) | {length:.1e} | {rise:.1e} |"
        for (a, b), (x1, x2), length, rise in ends
    ]


def mark_paths(axes: Axes, path: Tensor, title: str) -> None:
    """path: [steps + 1, S, 2]. Starts as dots, the way from dark to bright, ends as stars."""
    age = torch.linspace(0.1, 0.85, len(path))[:, None].expand(path.shape[:-1])
    axes.plot(path[..., 0], path[..., 1], color="#999999", linewidth=0.5, zorder=2)
    axes.scatter(path[..., 0], path[..., 1], c=age, s=3, cmap="plasma", vmin=0, vmax=1, zorder=3, linewidths=0)
    axes.scatter(path[0, :, 0], path[0, :, 1], color="black", s=14, zorder=4)
    axes.scatter(path[-1, :, 0], path[-1, :, 1], color="#D55E00", marker="*", s=45, zorder=5, linewidths=0)
    axes.set_title(title, fontsize=9)


def draw_figure(trajectories: dict[str, dict[str, Trajectory]], output: Path) -> None:
    """trajectories: by problem and method. Rows: EWQ's parameters, CQF's parameters, CQF's losses over its Pareto front."""
    figure = Figure(figsize=(2 * len(DRAWN), 6.6), layout="constrained")
    grid = figure.subplots(3, len(DRAWN))
    optimal = pareto_set(CQF, torch.linspace(1e-5, 1 - 1e-5, 200, dtype=torch.float64))
    front = evaluate(CQF, optimal)[0]
    for column, name in enumerate(DRAWN):
        top, middle, bottom = grid[:, column]
        mark_paths(top, trajectories["EWQ"][name].points, name)
        top.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
        middle.plot(optimal[:, 0], optimal[:, 1], color="black", linewidth=2, zorder=1)
        mark_paths(middle, trajectories["CQF"][name].points, "")
        middle.set(xlim=(-1.1, 1.1), ylim=(-0.3, 7.4))
        bottom.plot(front[:, 0], front[:, 1], color="black", linewidth=2, zorder=1)
        mark_paths(bottom, evaluate(CQF, trajectories["CQF"][name].points)[0], "")
        bottom.set(xlim=(-0.1, 2.6), ylim=(-0.4, 8.9))
    for axes, label in zip(grid[:, 0], ("EWQ: $x_2$ over $x_1$", "CQF: $x_2$ over $x_1$", "CQF: $f_2$ over $f_1$"), strict=True):
        axes.set_ylabel(label)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.trajectories", description="EWQ and CQF of Jacobian descent.")
    parser.add_argument("--output", type=Path, default=Path("runs/trajectories.png"), help="the figure")
    output = parser.parse_args(arguments).output
    trajectories: dict[str, dict[str, Trajectory]] = {}
    print("| objectives | method | start | end | shortest in hull | largest rise |\n|---|---|---|---|---:|---:|", flush=True)
    for problem in (EWQ, CQF):
        trajectories[problem.name] = {}
        for name, method in METHODS.items():
            trajectories[problem.name][name] = run(problem, method)
            print("\n".join(rows_of(problem, name, trajectories[problem.name][name])), flush=True)
    draw_figure(trajectories, output)
    print(f"\n{output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
