"""Whole runs of asynchronous rounds: resumed, on two ranks, and with a target."""

import json
from pathlib import Path

import pytest
import torch

import mtl
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedasync import FedAsync
from mtl.federation.algorithms.fedbuff import FedBuff
from mtl.federation.algorithms.scaffold import scaffold
from mtl.learning.checkpoints import read_checkpoint
from mtl.report.target import costs_to_target
from mtl.run.rules import check_rules
from mtl.run.train import train
from tests.run.test_train import kill_after, numbers, small, without_time

RUN = ["fleet=phones", "rounds=6", "evaluate_every=1", "checkpoint_every=1", "partition.num_clients=4", "engine.backend=vmap"]
BUFFERED = ["algorithm=fedbuff", "algorithm.buffer=2", *RUN]


@pytest.mark.parametrize("words", [BUFFERED, ["algorithm=fedasync", "keep=heads", *RUN]])
def test_a_resumed_run_ends_as_one_never_interrupted(words: list[str], class_folders: Path, tmp_path: Path) -> None:
    config = small(class_folders, *words)
    summary = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(summary)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    whole, cut = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut"))
    assert whole["versions"].keys() == cut["versions"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(cut["state_dict"][name], value)


@pytest.mark.slow
def test_two_ranks_agree_with_one(class_folders: Path, tmp_path: Path) -> None:
    for folder, more in (("one", []), ("two", ["trainer.devices=2"])):
        train(small(class_folders, *BUFFERED, *more), tmp_path / folder)
    one, two = (read_checkpoint(tmp_path / folder / "checkpoints" / "last.ckpt") for folder in ("one", "two"))
    for key, value in one["state_dict"].items():
        assert torch.allclose(two["state_dict"][key], value, rtol=1e-5, atol=1e-6), key


def test_the_summary_says_when_the_target_was_first_reached(class_folders: Path, tmp_path: Path) -> None:
    words = [*BUFFERED, "split.val=2", "write_report=true"]
    summary = train(small(class_folders, *words, "target_accuracy=.01"), tmp_path / "run")
    rows = {(int(round), name): float(value) for round, name, value in numbers(tmp_path / "run") if round != "round"}
    rates = {round: value for (round, name), value in rows.items() if name == "val/rank1"}
    first = min(round for round, rate in rates.items() if rate >= 0.01)
    assert summary["fit/target_round"] == first
    assert summary["cost/modelled_seconds_to_target"] == rows[first, "cost/modelled_seconds"]
    assert summary["cost/modelled_joules_to_target"] == rows[first, "cost/modelled_joules"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"reached in round {first}" in report
    # Another target is the same run: only what is said of it changes.
    assert not any("target" in name for name in train(small(class_folders, *words), tmp_path / "other"))


def test_a_target_needs_validation_images(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target_accuracy=0.9 is measured on validation images, and split leaves none"):
        train(small(class_folders, "split.val=0", "target_accuracy=.9"), tmp_path / "run")


def test_what_a_target_costs_is_read_where_the_rate_first_reaches_it() -> None:
    curves = {
        "val/rank1": {10: 0.5, 20: 0.9, 30: 0.8},
        "cost/modelled_seconds": {10: 1.0, 20: 3.0, 30: 9.0},
        "cost/modelled_joules": {10: 2.0, 20: 4.0, 30: 8.0},
    }
    assert costs_to_target(curves, "val/rank1", 0.8) == {
        "fit/target_round": 20,
        "cost/modelled_seconds_to_target": 3.0,
        "cost/modelled_joules_to_target": 4.0,
    }
    assert set(costs_to_target(curves, "val/rank1", 0.95).values()) == {None}
    assert costs_to_target({"val/rank1": {10: 0.5}}, "val/rank1", 0.5) == {"fit/target_round": 10}


def test_more_in_flight_than_clients_is_told_with_the_data(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"algorithm.concurrency must be in \[1, 4\], the number of clients that can take part, got 9"
    ):
        train(small(class_folders, *BUFFERED, "algorithm.concurrency=9"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_buffer_takes_no_client_half_that_keeps_state() -> None:
    both = Algorithm(FedBuff(buffer=2), scaffold().client)
    with pytest.raises(ValueError, match=r"no state may stay on it .*: the algorithm's client half must keep nothing, got \w+"):
        check_rules(mtl.configure(options=["fleet=phones"], algorithm=both))
    check_rules(mtl.configure(options=["fleet=phones"], algorithm=Algorithm(FedAsync(), scaffold().client)))
