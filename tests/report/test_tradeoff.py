"""Which models no other beats, and what is drawn of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.report.groups import group_runs
from mtl.report.runs import read_run
from mtl.report.tradeoff import Model, draw_tradeoff, models_of, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


def test_a_front_by_hand() -> None:
    # Dearer and worse than the second; as dear as the third and worse; a twin of the second.
    costs, rates = [3.0, 2.0, 4.0, 4.0, 2.0, 1.0], [0.5, 0.6, 0.9, 0.8, 0.6, 0.1]
    assert pareto_front(costs, rates) == [5, 1, 4, 2]


@given(POINTS)
def test_a_front_beats_all_others_and_rises_along_itself(points: list[tuple[int, int]]) -> None:
    costs, rates = [float(cost) for cost, _ in points], [float(rate) for _, rate in points]
    front = pareto_front(costs, rates)
    along = [(costs[place], rates[place]) for place in front]
    assert along == sorted(along)
    for cost, rate in zip(costs, rates, strict=True):
        assert any(c <= cost and r >= rate for c, r in along)


def test_filled_points_are_the_front_and_panels_need_something_to_tell_apart() -> None:
    models = [
        Model("large", {"rank-1": 0.9, "worst-task AUROC": 0.5}, {("file", "B"): 3e6, ("an image, measured", "ms"): 2.0}),
        Model("small", {"rank-1": 0.8, "worst-task AUROC": 0.5}, {("file", "B"): 1e5, ("an image, measured", "ms"): 1.0}),
        Model("poor", {"rank-1": 0.7, "worst-task AUROC": 0.5}, {("file", "B"): 2e5}),
    ]
    figure = draw_tradeoff(models)
    assert figure is not None
    first, second = figure.axes  # one rate, two costs: the worst task tells nothing apart
    assert [axes.get_xlabel() for axes in (first, second)] == ["file, B", "an image, measured, ms"]
    assert [first.get_ylabel(), first.get_xscale(), second.get_xscale()] == ["rank-1", "log", "linear"]
    shown = [line for line in first.lines if line.get_marker() == "o" and line.get_xdata().size]
    assert [str(line.get_markerfacecolor()) == "white" for line in shown] == [False, False, True]
    front = next(line for line in first.lines if line.get_drawstyle() == "steps-post" and line.get_xdata().size)
    assert front.get_xdata().tolist() == [1e5, 3e6]
    assert draw_tradeoff(models[:1]) is None


def test_models_are_the_means_over_seeds_and_costs_are_sums(tmp_path: Path, fabricate) -> None:
    size = {"num_tasks": 4, "num_clients": 2, "num_rounds": 10}
    runs = [
        fabricate(tmp_path / f"{mode}{seed}", mode=mode, seed=seed, **size) for mode in ("federated", "local") for seed in (0, 1)
    ]
    read = [read_run(run) for run in runs]
    models = models_of(group_runs(read))
    assert [model.name for model in models] == ["federated", "local"]
    summaries = [run.summary for run in read[:2]]
    assert models[0].rates["AUROC"] == pytest.approx(sum(summary["test/auroc"] for summary in summaries) / 2)
    sent = [summary["fit/bytes_up_per_client"] + summary["fit/bytes_down_per_client"] for summary in summaries]
    assert models[0].costs["sent and received by a client", "B"] == pytest.approx(sum(sent) / 2)
