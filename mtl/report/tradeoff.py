"""Accuracy against cost, one point per model, with the Pareto front: the models that no other beats in both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl.report.groups import Group
from mtl.report.style import GREY, MAX_GROUPS, Drawing, Look, Prefixed, add_legend, pick_point, set_log_ticks

RATES = (
    ("rank-1", "test/rank1"),
    ("AUROC", "test/auroc"),
    ("worst-task AUROC", "test/worst_task_auroc"),
    ("AUROC of the worst clients", "test/worst_clients_auroc"),
)
COSTS = (
    ("parameters", ("cost/parameters",), ""),
    ("FLOPs of an image", ("cost/flops_forward",), ""),
    ("sent and received by a client", ("fit/bytes_up_per_client", "fit/bytes_down_per_client"), "B"),
    ("modelled time of a round", ("cost/modelled_seconds_per_round",), "s"),
    ("modelled energy of a client", ("cost/modelled_joules_per_client",), "J"),
)


@dataclass(frozen=True)
class Model:
    """One model of a trade-off.

    Attributes:
        name: in the legend.
        rates: in 0..1, higher is better, by their title.
        costs: lower is better, by their title and unit.
    """

    name: str
    rates: Mapping[str, float]
    costs: Mapping[tuple[str, str], float]


def pareto_front(costs: Sequence[float], rates: Sequence[float]) -> list[int]:
    """Find the points that no other is as good as in both and better in one.

    Args:
        costs: [n], lower is better.
        rates: [n], higher is better.

    Returns:
        Their indices, from the cheapest to the most expensive.
    """

    def beaten(place: int) -> bool:
        cost, rate = costs[place], rates[place]
        return any(c <= cost and r >= rate and (c < cost or r > rate) for c, r in zip(costs, rates, strict=True))

    return sorted((place for place in range(len(costs)) if not beaten(place)), key=lambda place: costs[place])


def models_of(groups: Sequence[Group]) -> list[Model]:
    """Make a model of each group of runs, from the means over their seeds of what their summaries hold."""

    def mean(group: Group, metric: str) -> float | None:
        spread = group.spread(metric)
        return None if spread is None else spread.mean

    models = []
    for group in groups:
        rates = {title: value for title, metric in RATES if (value := mean(group, metric)) is not None}
        costs = {}
        for title, metrics, unit in COSTS:
            values = [value for metric in metrics if (value := mean(group, metric)) is not None]
            if len(values) == len(metrics):
                costs[title, unit] = sum(values)
        models.append(Model(group.name, rates, costs))
    return models


def draw_tradeoff(models: Sequence[Model]) -> Drawing:
    """Draw a panel for each rate and each cost in which at least two models differ by more than one in a thousand.

    Only the first `MAX_GROUPS` models are drawn. Returns None where no rate or no cost differs.
    """
    models = models[:MAX_GROUPS]
    rates = [rate for rate in dict.fromkeys(rate for model in models for rate in model.rates) if _differs(models, "rates", rate)]
    if "rank-1" in rates and "AUROC" in rates:
        rates.remove("AUROC")
    costs = [cost for cost in dict.fromkeys(cost for model in models for cost in model.costs) if _differs(models, "costs", cost)]
    if not rates or not costs:
        return None
    figure = Figure(figsize=(2.5 * len(costs) + 0.8, 2.0 * len(rates) + 0.4))
    grid = figure.subplots(len(rates), len(costs), squeeze=False, sharex="col", sharey="row")
    for row, rate in enumerate(rates):
        for column, cost in enumerate(costs):
            _draw_panel(grid[row][column], models, rate, cost)
            if row == len(rates) - 1:
                title, unit = cost
                grid[row][column].set_xlabel(f"{title}, {unit}" if unit else title)
        grid[row][0].set_ylabel(rate)
    looks: list[Look] = [pick_point(place) | {"markersize": 5} for place in range(len(models))]
    add_legend(figure, [*(model.name for model in models), "Pareto front"], [*looks, {"color": GREY, "linewidth": 0.8}])
    return figure


def _draw_panel(axes: Axes, models: Sequence[Model], rate: str, cost: tuple[str, str]) -> None:
    known = [place for place, model in enumerate(models) if rate in model.rates and cost in model.costs]
    xs, ys = [models[place].costs[cost] for place in known], [models[place].rates[rate] for place in known]
    front = pareto_front(xs, ys)
    axes.step([xs[place] for place in front], [ys[place] for place in front], where="post", color=GREY, linewidth=0.8, zorder=1)
    for place, (model, x, y) in enumerate(zip(known, xs, ys, strict=True)):
        # Filled where it is on the front.
        look = pick_point(model)
        axes.plot(x, y, **look, markersize=5, markerfacecolor=look["color"] if place in front else "white", zorder=2)
    axes.margins(0.12)
    if min(xs) > 0 and max(xs) > 10 * min(xs):
        axes.set_xscale("log")
        set_log_ticks(axes.xaxis, min(xs), max(xs), lambda value, _: Prefixed()(value))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(Prefixed())
    axes.grid()


def _differs(models: Sequence[Model], kind: str, name: Any) -> bool:
    known = [values[name] for model in models if name in (values := getattr(model, kind))]
    return len(known) > 1 and max(known) - min(known) > 1e-3 * max(abs(value) for value in known)
