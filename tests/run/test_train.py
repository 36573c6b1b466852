"""Whole runs on small pictures: through the configuration, Lightning and the run directory."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import nn

from mtl.base.types import Diverged, ImageData
from mtl.data.assignment import owner
from mtl.data.federated_data import federate
from mtl.data.partition import iid
from mtl.data.splits import Split
from mtl.data.subtasks import one_vs_rest
from mtl.federation.clients.auto import AutoBackend
from mtl.learning.checkpoints import CheckpointError, read_checkpoint
from mtl.models.cnn import ImageShape, Trunk
from mtl.models.norm import Norm
from mtl.run.build import build_data
from mtl.run.directory import locked
from mtl.run.learners import build_learner
from mtl.run.members import DEFAULTS, PARTIAL, WHOLE
from mtl.run.train import train
from tests.composing import compose

SMALL = [
    "data=folder",
    "data.image_size=[16,16]",
    "data.grey=true",
    "split.train=4",
    "split.val=2",
    "partition.num_clients=2",
    "trunk.channels=[8]",
    "trunk.width=8",
    "rounds=4",
    "work.steps=2",
    "evaluate_every=2",
    "checkpoint_every=1",
    "tracking.wandb=disabled",
    "write_report=false",
    "trainer.accelerator=cpu",
    "engine.backend=loop",
]


def small(root: Path, *overrides: str) -> DictConfig:
    config = compose([*SMALL, "data.root=.", *overrides])
    config.data.root = str(root)  # as it stands, whatever letters it has
    return config


def without_time(summary: dict[str, Any]) -> dict[str, Any]:
    timed = ("fit/seconds", "fit/samples_per_second", "fit/round_seconds", "fit/overhead")
    return {name: value for name, value in summary.items() if name not in timed}


def numbers(run_dir: Path) -> list[list[str]]:
    with (run_dir / "metrics.csv").open() as file:
        return sorted(csv.reader(file))


@pytest.mark.parametrize("mode", ["federated", "centralised", "local"])
def test_a_run_directory_holds_everything(class_folders: Path, tmp_path: Path, mode: str) -> None:
    run_dir = tmp_path / "run"
    summary = train(small(class_folders, f"mode={mode}"), run_dir)
    expected = {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "summary.json",
        "checkpoints",
        "federation.npz",
        "predictions.npz",
    }
    assert expected <= {path.name for path in run_dir.iterdir()}
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    for name in ("rank1", "auroc", "worst_task_auroc", "balanced_accuracy", "c3/auroc"):
        assert 0 <= summary[f"test/{name}"] <= 1  # type: ignore[operator]
    assert summary["fit/best_round"] in (2, 4)
    assert (summary["fit/seconds"] or 0) > 0
    names = {row[1] for row in numbers(run_dir)}
    assert {"train/loss", "train/positive", "train/negative", "train/c1/positive", "train/c1/negative", "val/rank1"} <= names
    by_name = {(row[0], row[1]): float(row[2]) for row in numbers(run_dir) if row[0] != "round"}
    per_task = sum(by_name["3", f"train/c{t}/positive"] for t in range(4))
    assert by_name["3", "train/positive"] == pytest.approx(per_task, rel=1e-5)


def test_the_modes_make_the_same_number_of_gradient_steps(class_folders: Path, tmp_path: Path) -> None:
    samples = {
        mode: train(small(class_folders, f"mode={mode}"), tmp_path / mode)["fit/samples"] for mode in ("federated", "local")
    }
    assert samples == {"federated": 4 * 2 * 2 * 8, "local": 4 * 2 * 2 * 8}  # rounds x clients x steps x images of a client
    _, steps = build_learner(small(class_folders, "mode=centralised"), build_data(small(class_folders)), tmp_path)
    assert steps == 2 * 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["mode=federated"],
        ["mode=federated", "algorithm=fedavgm", "keep=heads", "sampling.dropout=0.4"],
        ["mode=federated", "trunk=classic_cnn", "fusion=platt"],
        ["mode=local"],
        ["mode=centralised"],
        ["mode=centralised", "trunk=classic_cnn"],
        ["mode=federated", "engine.backend=vmap", "trunk=classic_cnn", "keep=heads", "sampling.dropout=0.4"],
        ["mode=federated", "tracking.log_every=3"],
        ["mode=federated", "balancer=famo", "balance.conflict=true", "balance.normalise=weights"],
        ["mode=centralised", "balancer=moco"],
        ["mode=centralised", "balancer=famo", "balance.conflict=true"],
        ["mode=federated", "server=conflict_averse", "algorithm.momentum=.5"],
        ["mode=single_task"],
        ["mode=local", "engine.bank_memory=100"],
        ["mode=federated", "keep=heads", "engine.bank_memory=100", "sampling.dropout=0.4"],
        ["mode=federated", "fleet=mix", "fleet.mix={raspberry_pi_4:1,phone_low:1}", "fleet.wait_for=1", "fusion=platt"],
    ],
    ids="-".join,
)
def test_a_resumed_run_ends_as_one_never_interrupted(class_folders: Path, tmp_path: Path, overrides: list[str]) -> None:
    # Rounds enough after the kill for whatever was not restored to show.
    config = small(class_folders, *overrides, "rounds=7")
    whole = train(config, tmp_path / "whole")
    # What a kill after round 3 leaves: its checkpoint, and numbers of rounds beyond it.
    cut = tmp_path / "cut"
    kill_after(config, cut, rounds=3)
    config.resume = True
    resumed = train(config, cut)
    assert "val/best_rank1" in whole
    assert without_time(resumed) == without_time(whole)
    assert numbers(cut) == numbers(tmp_path / "whole")


def test_the_last_round_is_evaluated_and_can_be_the_best(class_folders: Path, tmp_path: Path) -> None:
    for mode in ("federated", "centralised"):
        summary = train(small(class_folders, f"mode={mode}", "rounds=5", "evaluate_every=3"), tmp_path / mode)
        rounds = [int(row[0]) for row in numbers(tmp_path / mode) if row[1] == "val/rank1"]
        assert sorted(rounds) == [3, 5]
        assert summary["fit/best_round"] in (3, 5)
    train(small(class_folders, "rounds=3", "evaluate_every=2", "split.val=0"), tmp_path / "monitor")
    assert [row[0] for row in numbers(tmp_path / "monitor") if row[1] == "monitor/rank1"] == ["2", "3"]


@pytest.mark.parametrize(("split", "rounds"), [("split.val=2", None), ("split.val=0", 7)])
def test_conflicts_are_those_of_the_rounds_up_to_the_tested_one(
    class_folders: Path, tmp_path: Path, split: str, rounds: int | None
) -> None:
    words = ["balance.conflict=true", "rounds=7", "evaluate_every=1", split]
    summary = train(small(class_folders, *words), tmp_path / "run")
    tested = rounds or int(summary["fit/best_round"] or 0)
    with np.load(tmp_path / "run" / "conflict.npz") as file:
        # Each client trains two subtasks of its own, in two local steps a round.
        assert file["steps"].max() == 2 * tested


def test_a_resumed_run_may_have_another_machine_engine_and_place(class_folders: Path, tmp_path: Path) -> None:
    whole = train(small(class_folders), tmp_path / "whole")
    kill_after(small(class_folders), tmp_path / "cut", rounds=2)
    moved, run_dir = tmp_path / "moved", tmp_path / "elsewhere"
    class_folders.rename(moved)
    (tmp_path / "cut").rename(run_dir)
    again = ["resume=true", "trainer.threads=1", "engine.backend=vmap", "engine.block=1"]
    resumed = train(small(moved, *again), run_dir)
    assert resumed["test/auroc"] == pytest.approx(whole["test/auroc"], abs=1e-4)
    assert f"root: {moved}" in (run_dir / "config.yaml").read_text()


def test_rounds_can_grow_and_the_rounds_are_those_of_a_longer_run(class_folders: Path, tmp_path: Path) -> None:
    words = ["schedule=constant", "schedule.warmup=2", "evaluate_every=2"]
    whole = train(small(class_folders, *words, "rounds=6"), tmp_path / "whole")
    train(small(class_folders, *words), tmp_path / "grown")
    grown = train(small(class_folders, *words, "rounds=6", "resume=true"), tmp_path / "grown")
    assert without_time(grown) == without_time(whole)
    assert numbers(tmp_path / "grown") == numbers(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"rounds must be at least the 6 that output_dir .* has done already, got 5"):
        train(small(class_folders, *words, "rounds=5", "resume=true"), tmp_path / "grown")
    train(small(class_folders), tmp_path / "cosine")
    with pytest.raises(ValueError, match=r"rounds \(4 there, 6 now\); .* schedule=cosine does"):
        train(small(class_folders, "rounds=6", "resume=true"), tmp_path / "cosine")


def test_resuming_a_finished_run_changes_nothing(class_folders: Path, tmp_path: Path) -> None:
    summary = train(small(class_folders), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train(small(class_folders, "resume=true"), tmp_path / "run") == summary
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    # Killed after the last round and before the summary: the times of the rounds are in the checkpoint.
    (tmp_path / "run" / "summary.json").unlink()
    assert train(small(class_folders, "resume=true"), tmp_path / "run").keys() == summary.keys()


def test_the_summary_holds_the_validation_metrics_of_the_chosen_round_and_the_rule(class_folders: Path, tmp_path: Path) -> None:
    for words, rule in (([], "val/rank1"), (["best_by=worst_task_auroc"], "val/worst_task_auroc")):
        run_dir = tmp_path / rule.replace("/", "-")
        summary = train(small(class_folders, "rounds=5", "evaluate_every=1", *words), run_dir)
        assert summary["fit/chosen_by"] == rule
        logged = {(row[0], row[1]): float(row[2]) for row in numbers(run_dir) if row[1].startswith("val/")}
        chosen = {name: value for (round, name), value in logged.items() if round == str(summary["fit/best_round"])}
        totals = {name.replace("val/", "val/best_"): value for name, value in chosen.items() if name.count("/") == 1}
        assert len(totals) >= 5
        assert {name: value for name, value in summary.items() if name.startswith("val/")} == totals
        assert chosen[rule] == max(value for (_, name), value in logged.items() if name == rule)


def test_a_checkpoint_without_the_metrics_of_its_best_round_is_refused_in_words(class_folders: Path, tmp_path: Path) -> None:
    kill_after(small(class_folders), tmp_path / "run", rounds=3)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    (state,) = (state for name, state in checkpoint["callbacks"].items() if "SaveBest" in name)
    del state["metrics"]
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="metrics of the best round, got none: an earlier version of mtl wrote it"):
        train(small(class_folders, "resume=true"), tmp_path / "run")


def test_a_resumed_run_wants_the_same_weights_wherever_they_lie(class_folders: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        train(small(class_folders, f"seed={seed}", "rounds=1"), tmp_path / f"{seed}")
    train(small(class_folders, f"weights={tmp_path / '1'}"), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"weights, start, .* have changed their content"):
        train(small(class_folders, f"weights={tmp_path / '2'}", "resume=true"), tmp_path / "run")
    (tmp_path / "1").rename(tmp_path / "moved")
    train(small(class_folders, f"weights={tmp_path / 'moved'}", "resume=true"), tmp_path / "run")


def test_a_run_that_is_going_on_is_left_alone(class_folders: Path, tmp_path: Path) -> None:
    kill_after(small(class_folders), tmp_path / "run", rounds=2)
    with locked(tmp_path / "run"), pytest.raises(ValueError, match=r"is in use by process \d+ on"):
        train(small(class_folders, "resume=true"), tmp_path / "run")
    assert train(small(class_folders, "resume=true"), tmp_path / "run")["fit/rounds"] == 4


def test_a_start_that_fails_does_not_block_the_next(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mtl.learning.federated.run_round", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            train(small(class_folders), tmp_path / "run")
    assert train(small(class_folders, "client.learning_rate=0.02"), tmp_path / "run")["test/auroc"] is not None


def test_a_resumed_run_keeps_the_backend_that_auto_took(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(small(class_folders, "engine.backend=vmap"), tmp_path / "whole")
    config = small(class_folders, "engine.backend=auto")
    monkeypatch.setattr(AutoBackend, "_choose", lambda *_: ("vmap", "said by the test"))
    kill_after(config, tmp_path / "cut", rounds=2)
    monkeypatch.setattr(AutoBackend, "_choose", lambda *_: ("loop", "chosen again"))
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def kill_after(config: DictConfig, run_dir: Path, *, rounds: int) -> None:
    """Run until round `rounds` + 1 begins to be logged, then fail as a kill would: nothing is tidied up in the run directory."""
    from mtl.run import tracking

    log = tracking.Tracker.log

    class Killed(BaseException):
        pass

    def dying(self: tracking.Tracker, round: int, metrics: Any) -> None:
        log(self, round, metrics)
        if round > rounds:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.Tracker, "log", dying)
        with pytest.raises(Killed):
            train(config, run_dir)
    assert not (run_dir / "summary.json").exists()
    assert read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["epoch"] == rounds - 1


def test_numbers_are_the_same_however_seldom_they_are_read(class_folders: Path, tmp_path: Path) -> None:
    every = train(small(class_folders), tmp_path / "every")
    seldom = train(small(class_folders, "tracking.log_every=3"), tmp_path / "seldom")
    assert without_time(every) == without_time(seldom)
    assert numbers(tmp_path / "every") == numbers(tmp_path / "seldom")


def test_a_profile_says_where_the_time_of_a_round_goes(class_folders: Path, tmp_path: Path) -> None:
    train(small(class_folders, "profile=true", "rounds=5"), tmp_path / "run")
    table = (tmp_path / "run" / "profile" / "table.txt").read_text()
    for part in ("plan", "images", "local steps", "sum of updates", "server", "log", "the rest", "aten::convolution"):
        assert part in table
    calls = {line.split("  ")[0]: float(line.split()[-3]) for line in table.splitlines()[1:5]}
    assert calls["plan"] == 2.0  # clients
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    assert any(event.get("name") == "mtl/local steps" for event in trace["traceEvents"])


def test_a_seed_is_a_run(class_folders: Path, tmp_path: Path) -> None:
    first, again, other = (train(small(class_folders, f"seed={s}"), tmp_path / f"{i}") for i, s in enumerate((0, 0, 1)))
    assert without_time(first) == without_time(again)
    assert without_time(first) != without_time(other)


def test_every_run_says_what_it_costs(class_folders: Path, tmp_path: Path) -> None:
    for mode in ("federated", "centralised"):
        summary = train(small(class_folders, f"mode={mode}", "rounds=1"), tmp_path / mode)
        # 16x16 pictures: a 3x3 convolution of stride 2 to 8 channels, a linear layer of 8, four heads.
        first, rest = 8 * 8 * 8 * 9, 8 * 8 * 8 * 8 + 8 * 4
        # A file for a device scores a picture and its mirror image; a training step sees it once.
        assert summary["cost/flops_forward"] == 2 * 2 * (first + rest)
        assert summary["cost/flops_training"] == 2 * (2 * first + 3 * rest)
        assert summary["cost/flops_total"] == summary["cost/flops_training"] * summary["fit/samples"]  # type: ignore[operator]
        assert summary["cost/parameters"] == 8 * 9 + 2 * 8 + (512 * 8 + 8) + 4 * 8 + 1  # SphereFace2 learns a bias
        assert (summary["cost/modelled_memory_bytes"] or 0) > 3 * 4 * (summary["cost/parameters"] or 0)
        assert not [name for name in summary if name.startswith("cost/modelled_") and "bytes" not in name]
        assert not (tmp_path / mode / "fleet.csv").exists()


def test_a_fleet_models_time_and_energy_and_changes_nothing_else(class_folders: Path, tmp_path: Path) -> None:
    fleet = ["fleet=mix", "fleet.mix={raspberry_pi_4:1,camera_mcu:1}"]
    plain, modelled = train(small(class_folders), tmp_path / "plain"), train(small(class_folders, *fleet), tmp_path / "fleet")
    costs = {name for name in modelled if name not in plain}
    assert costs == {
        *("cost/modelled_seconds", "cost/modelled_joules"),
        *("cost/modelled_seconds_per_round", "cost/modelled_joules_per_client"),
    }
    assert without_time({name: value for name, value in modelled.items() if name not in costs}) == without_time(plain)
    with (tmp_path / "fleet" / "fleet.csv").open() as file:
        clients = list(csv.DictReader(file))
    assert {row["device"] for row in clients} == {"raspberry_pi_4", "camera_mcu"}
    seconds = [sum(float(row[f"modelled_seconds_{part}"]) for part in ("down", "compute", "up")) for row in clients]
    # The camera is the slowest in every round.
    assert modelled["cost/modelled_seconds"] == pytest.approx(4 * max(seconds), rel=1e-6)
    assert modelled["cost/modelled_joules"] == pytest.approx(4 * sum(float(row["modelled_joules"]) for row in clients), rel=1e-6)
    rows = {(row[0], row[1]): float(row[2]) for row in numbers(tmp_path / "fleet") if row[0] != "round"}
    assert rows["3", "cost/modelled_seconds"] == pytest.approx(3 * max(seconds), rel=1e-6)


def test_a_server_that_does_not_wait_leaves_the_camera_out(class_folders: Path, tmp_path: Path) -> None:
    fleet = ["fleet=mix", "fleet.mix={raspberry_pi_4:1,camera_mcu:1}"]
    waited = train(small(class_folders, *fleet, "fleet.wait_for=1"), tmp_path / "waited")
    late = train(small(class_folders, *fleet, "fleet.deadline=0.04"), tmp_path / "late")
    for summary in (waited, late):
        assert summary["fit/samples"] == 4 * 2 * 8  # rounds x steps x images, of one client
        assert summary["fit/bytes_down"] == 2 * (summary["fit/bytes_up"] or 0)
    assert late["cost/modelled_seconds"] == pytest.approx(4 * 0.04)
    assert 0 < (waited["cost/modelled_seconds"] or 0) < 4 * 0.04
    # As many gradient steps as those that come back make.
    config = small(class_folders, *fleet, "fleet.wait_for=1", "mode=centralised")
    assert build_learner(config, build_data(config), tmp_path)[1] == 2


def test_calibrations_are_in_the_bytes(class_folders: Path, tmp_path: Path) -> None:
    plain = train(small(class_folders), tmp_path / "plain")
    platt = train(small(class_folders, "fusion=platt"), tmp_path / "platt")
    # Two evaluations: each client is sent the model, and sends two numbers for each of its two subtasks.
    assert platt["fit/bytes_up"] == (plain["fit/bytes_up"] or 0) + 2 * 2 * 2 * 2 * 4
    assert platt["fit/bytes_down"] == (plain["fit/bytes_down"] or 0) * (4 + 2) / 4


def test_without_validation_images_the_last_round_counts_and_the_test_is_only_watched(
    class_folders: Path, tmp_path: Path
) -> None:
    summary = train(small(class_folders, "split.val=0"), tmp_path / "run")
    assert "fit/best_round" not in summary
    assert summary["fit/chosen_by"] is None
    assert not any(name.startswith("val/") for name in summary)
    names = {row[1] for row in numbers(tmp_path / "run")}
    assert "monitor/rank1" in names
    assert not any(name.startswith("val/") for name in names)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_an_output_folder_in_use_is_refused_and_left_as_it_is(class_folders: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(small(class_folders), run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds this run already; use resume=true"):
        train(small(class_folders), run_dir)
    with pytest.raises(ValueError, match=r"another configuration, which differs in client.learning_rate \(0.05 there, 0.1 now\)"):
        train(small(class_folders, "client.learning_rate=0.1", "resume=true"), run_dir)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"it holds thesis.tex"):
        train(small(class_folders), foreign)


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "pickle"])
def test_a_torn_or_foreign_checkpoint_is_refused_and_nothing_is_overwritten(
    class_folders: Path, tmp_path: Path, damage: str
) -> None:
    run_dir = tmp_path / "run"
    train(small(class_folders), run_dir)
    path = run_dir / "checkpoints" / "last.ckpt"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        middle = content.index(b"data/0") + 200
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        torch.save({"account": Path("x")}, path)
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=r"last.ckpt is (torn|not one of mtl's)"):
        train(small(class_folders, "resume=true"), run_dir)
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before


def test_a_checkpoint_of_another_run_is_refused(class_folders: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(small(class_folders, f"seed={seed}"), tmp_path / f"{seed}")
    shutil.copy(tmp_path / "1" / "checkpoints" / "last.ckpt", tmp_path / "0" / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError, match="of another run"):
        train(small(class_folders, "seed=0", "resume=true"), tmp_path / "0")


def test_images_that_changed_since_are_another_run(class_folders: Path, tmp_path: Path) -> None:
    train(small(class_folders), tmp_path / "run")
    picture = next((class_folders / "c0").glob("*.png"))
    Image.new("L", (16, 16), 200).save(picture)
    with pytest.raises(CheckpointError, match="its configuration or its data"):
        train(small(class_folders, "resume=true"), tmp_path / "run")


def test_subtasks_that_nobody_trained_in_a_round_have_no_loss_in_it(class_folders: Path, tmp_path: Path) -> None:
    train(small(class_folders, "sampling.dropout=0.6", "rounds=8", "evaluate_every=8"), tmp_path / "run")
    rows = [row for row in numbers(tmp_path / "run") if row[0] != "round"]
    per_round = {r: {row[1] for row in rows if row[0] == str(r)} for r in range(1, 9)}
    trained = [sum(f"train/c{t}/positive" in names for t in range(4)) for names in per_round.values()]
    assert set(trained) == {0, 2, 4}
    for names, number in zip(per_round.values(), trained, strict=True):
        assert ("train/loss" in names) == (number > 0)
    assert all(float(row[2]) > 0 for row in rows if row[1] == "train/loss")


def test_divergence_stops_with_client_and_round_and_keeps_the_last_good_checkpoint(class_folders: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = small(class_folders, "client.learning_rate=1e30", "schedule=constant", "loss=bce", "heads=linear")
    with pytest.raises(Diverged, match=r"client \d is not finite in round \d"):
        train(config, run_dir)
    checkpoints = list((run_dir / "checkpoints").glob("*")) if (run_dir / "checkpoints").exists() else []
    for path in checkpoints:
        assert all(value.isfinite().all() for value in read_checkpoint(path)["state_dict"].values())
    assert not (run_dir / "summary.json").exists()


def test_a_full_disk_keeps_the_last_checkpoint(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    kill_after(small(class_folders), run_dir, rounds=2)
    good = (run_dir / "checkpoints" / "last.ckpt").read_bytes()

    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "last.ckpt":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last.ckpt'"):
        train(small(class_folders, "resume=true"), run_dir)
    assert (run_dir / "checkpoints" / "last.ckpt").read_bytes() == good
    assert not list(run_dir.rglob("*.partial"))


@pytest.mark.parametrize("keep", ["heads", "all"])
def test_what_stays_in_a_file_gives_the_same_run(class_folders: Path, tmp_path: Path, keep: str) -> None:
    """A fresh run, which opens an empty run directory, and one that was killed."""
    words = ["rounds=3", f"keep={keep}", "mode=federated"]
    straight = train(small(class_folders, *words), tmp_path / "memory")
    in_file = train(small(class_folders, *words, "engine.bank_memory=1"), tmp_path / "file")
    kill_after(small(class_folders, *words, "engine.bank_memory=1"), tmp_path / "killed", rounds=2)
    resumed = train(small(class_folders, *words, "engine.bank_memory=1", "resume=true"), tmp_path / "killed")
    for other in (in_file, resumed):
        assert {k: v for k, v in other.items() if k.startswith("test/")} == {
            k: v for k, v in straight.items() if k.startswith("test/")
        }


MEMBERS = {group: list(members) for group, members in {**WHOLE, **PARTIAL}.items() if group != "data"}


@pytest.mark.parametrize("number", range(max(map(len, MEMBERS.values()))))
def test_every_member_of_every_group_composes(number: int) -> None:
    chosen = {group: members[number % len(members)] for group, members in MEMBERS.items()}
    config = compose([f"{group}={member}" for group, member in chosen.items()])
    assert all(config[group]._target_ for group in chosen)
    assert set(DEFAULTS) <= set(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["partition=iid", "assignment=all", "loss=bce", "heads=linear", "loss.positive_weight=balanced"],
        ["partition=dirichlet", "partition.alpha=0.3", "assignment=overlapping", "fusion=platt"],
        ["partition=shards", "assignment=owner", "sampling=cohort", "sampling.cohort=1"],
        ["partition=quantity_skew", "assignment=disjoint", "work=epochs", "algorithm=fedavgm"],
        ["partition=iid", "assignment=random", "assignment.tasks_per_client=4", "normalise=per_image", "augmentation=flip"],
        ["subtasks=groups", "+subtasks.mapping={low:[c0,c1],high:[c2,c3]}", "assignment=all", "reduction=known"],
    ],
)
def test_rules_combine(class_folders: Path, tmp_path: Path, overrides: list[str]) -> None:
    words = [w for w in SMALL if not (w.startswith("work.") and "work=epochs" in overrides)]
    config = compose([*words, f"data.root={class_folders}", *[o.replace("+subtasks", "subtasks") for o in overrides]])
    assert train(config, tmp_path / "run")["test/auroc"] is not None


def trunk_with_batch_norm(image_shape: ImageShape) -> Trunk:
    layers = [nn.Conv2d(image_shape[0], 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return Trunk(nn.Sequential(*layers), 4 * 4 * 4)


def test_a_trunk_with_batch_norm_trains_under_every_norm_but_refuse(class_folders: Path, tmp_path: Path) -> None:
    words = [word for word in SMALL if not word.startswith("trunk.")]
    for norm in get_args(Norm):
        config = compose([*words, f"data.root={class_folders}", f"norm={norm}"])
        config.trunk = {"_target_": f"{__name__}.{trunk_with_batch_norm.__name__}", "_partial_": True}
        if norm == "refuse":
            with pytest.raises(ValueError, match=r"BatchNorm \(features.1\).* norm=group, norm=frozen or norm=local"):
                train(config, tmp_path / norm)
        else:
            assert train(config, tmp_path / norm)["test/auroc"] is not None


@pytest.mark.parametrize(
    "overrides", [["mode=centralised"], ["mode=single_task"], ["mode=centralised", "fleet=boards"]], ids=" ".join
)
def test_an_assignment_that_plays_no_part_refuses_nothing(class_folders: Path, tmp_path: Path, overrides: list[str]) -> None:
    # Two clients with one subtask each leave two of four to nobody.
    config = small(class_folders, "assignment=random", "assignment.tasks_per_client=1", "rounds=1", *overrides)
    summary = train(config, tmp_path / "run")
    assert summary["test/c0/auroc"] is not None
    config.mode = "federated"
    with pytest.raises(ValueError, match=r"subtask c[0-3] is trained by no client"):
        train(config, tmp_path / "refused")


def test_a_subtask_without_a_positive_is_refused_where_all_images_are_in_one_place(images: ImageData) -> None:
    split = Split(torch.arange(12), torch.zeros(0, dtype=torch.long), torch.arange(12, 24))
    rules = {"partition": iid, "partition_by": "class", "assignment": owner, "seed": 0, "pooled": True}
    with pytest.raises(ValueError, match="subtask c2 has no training positive"):
        federate(images, one_vs_rest(images), split, **rules)  # type: ignore[arg-type]


def test_unusable_settings_are_refused_before_anything_is_written(class_folders: Path, tmp_path: Path) -> None:
    cases = {
        "mode=alone": "mode must be one of federated, centralised, local, single_task, detection, got alone",
        "rounds=0": "rounds must be >= 1, got 0",
        "partition.num_clients=9": "partition.num_clients must be at most the 4 classes",
        "fusion=vote": "fusion must be one of argmax, platt, got vote",
        "keep=trunk": "keep must be one of nothing, heads, norms, all, got trunk",
        "norm=batch": "norm must be one of refuse, group, frozen, local, got batch",
        "split.train=9": "split.train",
        "trainer.precision=16-mixed": "trainer.precision must be one of 32-true, bf16-mixed, got 16-mixed",
        "trainer.accelerator=gpu": "trainer cannot be made of accelerator=gpu",
        "trainer.threads=0": "trainer.threads must be >= 1, got 0",
        "sampling=cohort sampling.cohort=3": r"sampling.cohort must be in \[1, 2\], the number of clients, got 3",
        "best_by=accuracy": "best_by must be one of rank1, auroc, worst_task_auroc, .*, got accuracy",
        "engine.backend=ray": "engine.backend must be one of auto, loop, vmap, compiled, got ray",
        "trunk.channels=[10]": r"trunk.channels must be numbers divisible by trunk.groups=8, at least one, got \[10\]",
        "subtasks.classes=[c0]": "at least 2",
        "fleet=mix fleet.mix={abacus:2}": "fleet.mix has the unknown device abacus; choose from camera_mcu",
        "fleet.deadline=9": "fleet.deadline needs devices",
        "fleet=mix fleet.mix={tiny:1} fleet.profiles={tiny:{watts:1}}": "device tiny has the unknown field watts",
        "write_report=0": "write_report must be auto, true or false, got 0",
        "tracking.project=a/b/c": "tracking.project must be PROJECT or ENTITY/PROJECT",
        "tracking.wandb=maybe": "tracking.wandb must be one of auto, online, offline, disabled, got maybe",
    }
    if torch.cuda.is_available():
        del cases["trainer.accelerator=gpu"]
    for override, message in cases.items():
        with pytest.raises(Exception, match=message):
            train(small(class_folders, *override.split(" ")), tmp_path / "run")
        assert not (tmp_path / "run").exists(), override
    shutil.rmtree(class_folders / "c1")
    shutil.rmtree(class_folders / "c2")
    shutil.rmtree(class_folders / "c3")
    with pytest.raises(ValueError, match="at least 2"):
        train(small(class_folders), tmp_path / "run")
