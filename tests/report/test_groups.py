"""Runs that differ only in their seed are one group, and its spread is that of a sample."""

import math
from pathlib import Path
from typing import Any

import pytest

from mtl.report.groups import Group, flatten, group_runs, measure_spread
from mtl.report.runs import Run


def make_run(config: dict[str, Any], summary: dict[str, float | None] | None = None, curves: Any = None) -> Run:
    return Run(Path("somewhere"), config, {}, curves or {}, summary or {}, None, None, None, ())


def test_spread_of_one_two_six_by_hand() -> None:
    # mean 3, squared distances 4 + 1 + 9 = 14, sample variance 14 / 2 = 7
    spread = measure_spread([1.0, 2.0, None, 6.0])
    assert spread is not None
    assert (spread.mean, spread.minimum, spread.maximum, spread.count) == (3.0, 1.0, 6.0, 3)
    assert spread.deviation == pytest.approx(math.sqrt(7))


def test_one_value_has_no_deviation_and_no_value_no_spread() -> None:
    one = measure_spread([4.0])
    assert one is not None
    assert one.deviation is None
    assert measure_spread([None, None]) is None


def test_seed_name_and_output_do_not_divide_a_group() -> None:
    shared = {"mode": "local", "model": {"width": 8}}
    runs = [
        make_run(shared | {"seed": seed, "name": f"run{seed}", "output_dir": f"out/{seed}", "data": {"seed": seed}})
        for seed in range(3)
    ]
    (group,) = group_runs(runs)
    assert group.runs == tuple(runs)


def test_what_never_makes_another_run_does_not_divide_a_group() -> None:
    shared = {"mode": "local", "rounds": 3, "trainer": {"precision": "32-true"}}
    changes: list[dict[str, Any]] = [
        {},
        {"write_report": False, "profile": True, "checkpoint_every": 1, "objective": "val/rank1", "resume": True},
        {"trainer": {"precision": "32-true", "devices": 2, "threads": 1, "accelerator": "gpu"}},
        {"engine": {"backend": "vmap", "block": 4}},
        {"tracking": {"wandb": "offline", "log_every": 5}},
    ]
    base = {"trainer": {"precision": "32-true", "devices": 1}, "engine": {"backend": "loop"}}
    runs = [make_run(shared | base | change | {"seed": seed}) for seed, change in enumerate(changes)]
    (group,) = group_runs(runs)
    assert group.runs == tuple(runs)
    others: list[dict[str, Any]] = [{"rounds": 4}, {"trainer": {"precision": "bf16-mixed"}}, {"weights": "runs/a"}]
    assert len(group_runs([*runs, *(make_run(shared | base | change) for change in others)])) == 4


@pytest.mark.parametrize("key", ["fusion", "model.name", "data.path"])
def test_any_other_key_divides_them(key: str) -> None:
    configs = []
    for value in ("a", "b"):
        section, _, leaf = key.rpartition(".")
        configs.append({"seed": 0, **({section: {leaf: value}} if section else {leaf: value})})
    groups = group_runs([make_run(config) for config in configs])
    assert [group.name for group in groups] == [f"{key}=a", f"{key}=b"]


def test_a_name_uses_the_fewest_keys_and_prefers_the_mode() -> None:
    configs = [
        {"mode": "federated", "federation": {"rounds": 5}, "loss": {"_target_": "mtl.losses.Focal"}},
        {"mode": "federated", "federation": {"rounds": 5}, "loss": {"_target_": "mtl.losses.Square"}},
        {"mode": "local", "federation": None, "loss": {"_target_": "mtl.losses.Focal"}},
    ]
    groups = group_runs([make_run(config) for config in configs])
    names = [group.name for group in groups]
    assert names == ["federated, loss=Focal", "federated, loss=Square", "local, loss=Focal"]
    assert set(groups[0].settings) == {"mode", "loss._target_", "federation", "federation.rounds"}


def test_a_repeated_seed_is_said() -> None:
    (group,) = group_runs([make_run({"seed": 4}), make_run({"seed": 4}), make_run({"seed": 5})])
    assert [note for note in group.notes if "seed 4 occurs 2 times" in note]


def test_flatten_keeps_lists_and_empty_sections() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {"a.b.c": 1, "a.d": [1, 2], "e": {}}


def test_tasks_come_worst_first_and_undefined_ones_last() -> None:
    summaries: list[dict[str, float | None]] = [
        {"test/a/auroc": 0.9, "test/b/auroc": 0.5, "test/c/auroc": None},
        {"test/a/auroc": 0.7, "test/b/auroc": None, "test/c/auroc": None},
    ]
    spreads = Group("g", tuple(make_run({}, summary) for summary in summaries), {}).task_spreads("auroc")
    assert list(spreads) == ["b", "a", "c"]
    assert spreads["c"] is None
    assert spreads["a"] is not None
    assert spreads["a"].mean == pytest.approx(0.8)


def test_a_run_that_stops_early_bends_no_mean() -> None:
    runs = (make_run({}, curves={"m": {1: 0.0, 2: 0.2, 3: 0.9}}), make_run({}, curves={"m": {1: 1.0, 2: 0.4}}))
    curve = Group("g", runs, {}).curve("m")
    assert {number: spread.mean for number, spread in curve.items()} == {1: 0.5, 2: pytest.approx(0.3)}
