"""The two-dimensional toy of CAGrad and of Nash-MTL: two tasks whose gradients conflict in direction and differ in length.

    python -m experiments.toy_2d [--output runs/toy_2d.png]

With t = tanh(x2 / 2) and u_i = |(x1 + 7) / 2 - tanh x2| and |(3 - x1) / 2 - tanh x2 + 2|, not below 5e-6,

    f_i = (ln u_i + 6) max(t, 0) + ([(x1 -+ 7)^2 + (x2 + 8)^2 / 10] / 10 - 20) max(-t, 0)

CAGrad's setting (Liu et al., NeurIPS 2021, toy.py): c = .5, 100 000 steps, three starts. Nash-MTL's (Navon et al., ICML 2022,
experiments/toy): the first task times .1, c = .4, 35 000 steps, five starts; FAMO's run of it (Liu et al., NeurIPS 2023) 50 000.
All by Adam at 1e-3, float64: in float32 an endpoint moves by up to .4. Every start of every method is one problem of a batch.

PCGrad crosses the kinks of the logarithms for tens of thousands of steps from two of the starts, and leaves them where the last bits have
it: x1 ends between -4.3 and -2.2, and between 2.2 and 3.0, as one writes the same formula, scales it by a half, or sums in another order.
There it is held to that, and to the Pareto set.

Draws what the papers draw, trajectories over contours and over the Pareto front, and prints the endpoints beside those measured
with the authors' own solvers. Takes about five minutes on one core; exits with 1 if an endpoint is off.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtl.balancing.cagrad import CAGrad
from mtl.balancing.contract import Balancer, weighted_sum
from mtl.balancing.famo import FAMO
from mtl.balancing.gramian import gramian_of
from mtl.balancing.mgda import MGDA
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.weighting import Equal

LOWER, LEARNING_RATE, KEEP_EVERY, TOLERANCE = 5e-6, 1e-3, 100, 0.4
PARETO_X2 = -8.3552
Point = tuple[float, float]


@dataclass(frozen=True)
class Method:
    """expected: the measured endpoints, by start; x2 is that of the Pareto set unless said, nan where it is not known;
    slack: how far x1 may be from them.
    """

    name: str
    balancer: Balancer
    expected: tuple[Point, ...] = ()
    slack: tuple[float, ...] = (TOLERANCE,) * 3


@dataclass(frozen=True)
class Setting:
    """scale: of the first task; steps: of the longest run."""

    name: str
    scale: float
    steps: int
    starts: tuple[Point, ...]
    methods: tuple[Method, ...]


def on_front(*x1: float) -> tuple[Point, ...]:
    return tuple((x, PARETO_X2) for x in x1)


CAGRAD = Setting(
    "CAGrad's",
    1.0,
    100_000,
    ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)),
    (
        Method("sum", Equal(), ((-5.06, 2.17), (0.0, PARETO_X2), (5.05, 2.37))),
        Method("MGDA", MGDA(), on_front(-3.32, -6.99, 3.31)),
        Method("PCGrad", PCGrad(), on_front(-2.72, -6.43, 2.20), slack=(1.6, TOLERANCE, 0.8)),
        Method("CAGrad", CAGrad(c=0.5), on_front(0.0, 0.0, 0.0)),
    ),
)
NASH_STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
NASH = Setting(
    "Nash-MTL's",
    0.1,
    35_000,
    NASH_STARTS,
    (
        # From the first start it is on its way down when the run ends; how far it was elsewhere is not told.
        Method("sum", Equal(), ((-5.727, math.nan), *on_front(-5.727), (5.0, 4.0))),
        Method("MGDA", MGDA(), on_front(-1.92, 6.10, 6.98)),
        Method("PCGrad", PCGrad()),
        Method("CAGrad", CAGrad(c=0.4)),
        Method("Nash-MTL", NashMTL(), on_front(-2.92, 0.0, 2.93)),
    ),
)
FAMO_SETTING = Setting(
    "Nash-MTL's",
    0.1,
    50_000,
    NASH_STARTS,
    (Method("FAMO", FAMO(learning_rate=0.025, decay=0.0, lower_bounds=(-2.1, -21.0)), on_front(-0.31, 0.08, 0.36)),),
)


def evaluate(points: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """points: [..., 2]; returns losses [..., 2 tasks] and their gradients [..., 2 tasks, 2].

    At x2 = 0 both branches count as reached, so that their slopes are felt there.
    """
    sign = torch.tensor([1.0, -1.0], dtype=points.dtype)
    x1, x2 = points[..., :1], points[..., 1:]
    t, tanh = (x2 / 2).tanh(), x2.tanh()
    slope = (1 - t**2) / 2
    upper, lower = t.clamp_min(0), (-t).clamp_min(0)
    inner = sign * (tanh - 3.5) - x1 / 2
    size = inner.abs()
    inverse = torch.where(size >= LOWER, 1 / inner, 0)
    logarithm = size.clamp_min(LOWER).log() + 6
    across = x1 - 7 * sign
    bowl = (across**2 + (x2 + 8) ** 2 / 10) / 10 - 20
    by_x1 = -inverse / 2 * upper + across / 5 * lower
    by_x2 = (
        sign * inverse * (1 - tanh**2) * upper + logarithm * slope * (t >= 0) + (x2 + 8) / 50 * lower - bowl * slope * (t <= 0)
    )
    unit = torch.tensor([scale, 1.0], dtype=points.dtype)
    return unit * (logarithm * upper + bowl * lower), unit[:, None] * torch.stack([by_x1, by_x2], -1)


@torch.inference_mode()
def run(setting: Setting, *, steps: int | None = None) -> Tensor:
    """The trajectories, [kept, methods, starts, 2], every KEEP_EVERY steps and at the end."""
    points = torch.tensor(setting.starts, dtype=torch.float64).repeat(len(setting.methods), 1, 1)
    optimizer = torch.optim.Adam([points], lr=LEARNING_RATE)
    active = torch.ones(points.shape[1:], dtype=torch.bool)
    losses, _ = evaluate(points, setting.scale)
    states = [method.balancer.init(losses[i]) for i, method in enumerate(setting.methods)]
    draw = torch.zeros(len(setting.starts), 2, 2)  # two tasks have one order
    kept = []
    for step in range(steps or setting.steps):
        if step % KEEP_EVERY == 0:
            kept.append(points.clone())
        losses, gradients = evaluate(points, setting.scale)
        square = gramian_of(gradients)
        directions = []
        for i, method in enumerate(setting.methods):
            if method.balancer.observes and step:
                states[i] = method.balancer.observe(states[i], losses[i], active)
            weights, states[i] = method.balancer.weigh(states[i], losses[i], square[i], active, draw)
            directions.append(weighted_sum(weights, gradients[i]))
        points.grad = torch.stack(directions)
        optimizer.step()
    return torch.stack([*kept, points])


def verdicts(setting: Setting, ends: Tensor) -> list[tuple[str, bool]]:
    """One row of the table per method and start, and whether it is within tolerance."""
    rows = []
    for i, method in enumerate(setting.methods):
        for j, origin in enumerate(setting.starts):
            x1, x2 = ends[i, j].tolist()
            row = f"| {setting.name} | {method.name} | ({origin[0]:g}, {origin[1]:g}) | ({x1:.3f}, {x2:.3f}) |"
            if j < len(method.expected):
                expected = method.expected[j]
                near = abs(x1 - expected[0]) <= method.slack[j] and not abs(x2 - expected[1]) > TOLERANCE
                rows.append(
                    (f"{row} ({expected[0]:g}, {expected[1]:g}) | {method.slack[j]:g} | {'yes' if near else 'NO'} |", near)
                )
            else:
                rows.append((f"{row} | | |", True))
    return rows


def draw_contours(axes: Axes, setting: Setting, path: Tensor, title: str) -> None:
    """path: [kept, starts, 2] over the mean loss."""
    line = torch.linspace(-11, 11, 200, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    axes.contour(line, line, evaluate(grid, setting.scale)[0].mean(-1), levels=12, linewidths=0.6, cmap="viridis", zorder=1)
    axes.plot([-7, 7], [PARETO_X2] * 2, color="#999999", linewidth=4, zorder=2)
    mark_paths(axes, path)
    axes.set(title=title, xlim=(-11, 11), ylim=(-11, 11), aspect="equal")


def draw_losses(axes: Axes, setting: Setting, path: Tensor, title: str) -> None:
    """path: [kept, starts, 2], in the plane of the two losses, over the Pareto front."""
    set_ = torch.stack([torch.linspace(-7, 7, 200), torch.full((200,), PARETO_X2)], -1).double()
    front = evaluate(set_, setting.scale)[0]
    axes.plot(front[:, 0], front[:, 1], color="#999999", linewidth=4, zorder=2)
    mark_paths(axes, evaluate(path, setting.scale)[0])
    axes.set(title=title, xlabel="$f_1$", ylabel="$f_2$")


def mark_paths(axes: Axes, path: Tensor) -> None:
    """Starts as dots, the way from dark to bright, ends as stars."""
    age = torch.linspace(0.1, 0.85, len(path))[:, None].expand(path.shape[:-1])
    axes.scatter(path[..., 0], path[..., 1], c=age, s=1.5, cmap="plasma", vmin=0, vmax=1, zorder=3, linewidths=0)
    axes.scatter(path[0, :, 0], path[0, :, 1], color="black", s=14, zorder=4)
    axes.scatter(path[-1, :, 0], path[-1, :, 1], color="#D55E00", marker="*", s=45, zorder=5, linewidths=0)


def draw_figure(paths: Sequence[tuple[Setting, Tensor]], output: Path) -> None:
    """Contours for the first setting, the plane of the losses for the others."""
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 12)
    (first, path), *others = paths
    for i, method in enumerate(first.methods):
        draw_contours(figure.add_subplot(grid[0, 3 * i : 3 * i + 3]), first, path[:, i], method.name)
    panels = [(setting, method.name, path[:, i]) for setting, path in others for i, method in enumerate(setting.methods)]
    for i, (setting, title, way) in enumerate(panels):
        draw_losses(figure.add_subplot(grid[1, 2 * i : 2 * i + 2]), setting, way, title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.toy_2d", description="The 2-D toy of CAGrad and Nash-MTL.")
    parser.add_argument("--output", type=Path, default=Path("runs/toy_2d.png"), help="the figure")
    output = parser.parse_args(arguments).output
    begin = time.perf_counter()
    paths, near = [], True
    print("| setting | method | start | end | measured elsewhere | x1 within | |\n|---|---|---|---|---|---|---|", flush=True)
    for setting in (CAGRAD, NASH, FAMO_SETTING):
        paths.append((setting, run(setting)))
        for row, is_near in verdicts(setting, paths[-1][1][-1]):
            print(row, flush=True)
            near = near and is_near
    draw_figure(paths, output)
    print(f"\n{output} after {time.perf_counter() - begin:.0f} s")
    return int(not near)


if __name__ == "__main__":
    sys.exit(main())
