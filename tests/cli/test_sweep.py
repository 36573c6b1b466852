"""Sweeps: run directories by content, what is skipped and gone on with, and the table at the end."""

import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from mtl.cli.job_folder import folder_name, readable_name
from mtl.cli.main import main
from mtl.run.directory import locked
from tests.cli.test_cli import ENDLESS, QUICK, start, wait_for_round
from tests.run.test_train import SMALL, without_time

FLAT = [word for word in SMALL if not word.startswith("trunk.")] + ["trunk=flat", "rounds=1", *QUICK]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.threads=1"]


def sweep(root: Path, folder: Path, *more: str) -> list[str]:
    return ["train", "-m", *FLAT, f"data.root={root}", f"output_dir={folder}", *more]


def runs(folder: Path) -> list[str]:
    """Names without hashes."""
    return sorted(path.parent.name.rpartition("-")[0] for path in folder.glob("*/summary.json"))


def written(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def outcomes(printed: str) -> list[str]:
    """The column of the table that says what became of a job."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if line.startswith("│")]
    return [row[2] for row in rows if row[0]]


def test_a_sweep_trains_each_configuration_once_however_its_grid_grows(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grid"
    assert main(sweep(class_folders, folder, "seed=0,1")) == 0
    assert runs(folder) == ["seed=0", "seed=1"]
    first = written(folder)
    shutil.rmtree(next(folder.glob("seed=1-*")))
    capfd.readouterr()
    assert main(sweep(class_folders, folder, "mode=federated,local", "seed=1,0")) == 0
    assert outcomes(capfd.readouterr().out) == ["done", "already done", "done", "done"]
    every = written(folder)
    assert every.items() >= {name: time for name, time in first.items() if name.startswith("seed=0")}.items()
    assert runs(folder) == ["mode=federated_seed=1", "mode=local_seed=0", "mode=local_seed=1", "seed=0"]
    assert main(sweep(class_folders, folder, "seed=0,1", "mode=federated,local")) == 0
    assert outcomes(capfd.readouterr().out) == ["already done"] * 4
    assert written(folder) == every
    assert main([*sweep(class_folders, folder, "seed=3,3,0", "name=a,b"), "--dry-run"]) == 0
    assert outcomes(capfd.readouterr().out) == ["new", *["the run of job 0"] * 3, "done", "the run of job 4"]
    assert main(["report", str(folder)]) == 0
    assert "federated" in capfd.readouterr().out
    config = yaml.safe_load(next(folder.glob("mode=local_seed=0-*/config.yaml")).read_text())
    assert (config["name"], config["tracking"]["group"]) == ("mode=local_seed=0", "grid")
    assert not list(folder.glob(".*"))


def test_hydra_composes_each_job_once(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[str] = []
    real = ConfigLoaderImpl.load_sweep_config

    def load(loader: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append(sweep_overrides[-2])
        return real(loader, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load)
    assert main(sweep(class_folders, tmp_path / "grid", "seed=0,1")) == 0
    assert composed == ["seed=0", "seed=1"]


def test_what_the_user_sweeps_makes_runs_of_its_own_where_the_identity_does_not(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["schedule=constant", "evaluate_every=1"]
    assert main(sweep(class_folders, tmp_path / "grid", *words, "rounds=1,2")) == 0
    assert [row.rpartition("-")[0] for row in runs(tmp_path / "grid")] == ["rounds=1", "rounds=2"]
    capfd.readouterr()
    assert main(sweep(class_folders, tmp_path / "grid", *words, "rounds=2", "seed=0")) == 0
    assert outcomes(capfd.readouterr().out) == ["already done"]


def test_names_are_short_and_fit_every_disk() -> None:
    words = ["+experiment=orl", "client.learning_rate=-0.5", "data.root='/Été/a b'", "loss=bce", "rounds=3"]
    keys = ["+experiment", "client.learning_rate", "data.root", "loss"]
    assert readable_name(words, keys) == "experiment=orl_learning_rate=-0.5_root=Ete-a-b_loss=bce"
    assert readable_name(["a.x=1", "b.x=2"], ["a.x", "b.x"]) == "a.x=1_b.x=2"
    assert readable_name(["data.image_size=[8,8]"], ["data.image_size"]) == "image_size=8-8"
    many = [f"group.option_of_a_long_name{i}={'x' * 100}" for i in range(9)]
    assert len(folder_name(Path(), {"rounds": 1}, many, [word.partition("=")[0] for word in many])) <= 100


@pytest.mark.parametrize(("key", "value"), [("weights", "elsewhere"), ("engine.backend", "vmap")])
def test_a_swept_key_outside_the_identity_is_part_of_the_name_and_another_is_not(key: str, value: str, tmp_path: Path) -> None:
    group, _, option = key.rpartition(".")
    changed: dict[str, object] = {group: {option: value}} if group else {option: value}
    one = {"seed": 0, "rounds": 1, "weights": "here", "engine": {"backend": "auto"}}
    other = one | changed
    assert folder_name(tmp_path, one, ["seed=0"], ["seed"]) == folder_name(tmp_path, other, ["seed=0"], ["seed"])
    swept = {folder_name(tmp_path, config, [f"{key}=x"], [key]) for config in (one, other)}
    assert len(swept) == 2


def test_an_invalid_job_is_found_before_the_first_trains(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grid"
    assert main(sweep(class_folders, folder, "client.learning_rate=.05,-1", "seed=0,1")) == 2
    printed = capfd.readouterr().err
    assert "2 of the sweep's 4 jobs cannot run, and none was started:" in printed
    assert "  job 2 (client.learning_rate=-1 seed=0): client.learning_rate must be > 0, got -1.0" in printed
    assert main(sweep(class_folders, folder, "loss=bce,hing")) == 2
    assert "job 1 (loss=hing): loss must be one of" in capfd.readouterr().err
    assert main(sweep(class_folders, folder, "seed=range(501)")) == 2
    assert "501 jobs: more than 500 need --yes" in capfd.readouterr().err
    assert main([*sweep(class_folders, folder, "seed=0,1"), f"output_dir={folder},b"]) == 2
    assert "output_dir is the folder of the sweep" in capfd.readouterr().err
    assert not folder.exists()


def test_a_sweep_goes_on_after_a_failed_job_and_its_table_says_which_failed_and_why(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, pictures = tmp_path / "grid", tmp_path / "other"
    words = sweep(class_folders, folder, f"data.root={pictures},{class_folders}", "hydra.sweeper.max_batch_size=1")
    assert main(words) == 1
    out, errors = capfd.readouterr()
    assert outcomes(out) == ["failed", "done"]
    assert "2 jobs: 1 done, 1 failed" in out
    assert f"mtl: error: job 0 (data.root={pictures}): " in errors
    failed = next(file.parent for file in folder.glob("*/error.txt"))
    assert str(pictures) in (failed / "error.txt").read_text()
    assert {path.name for path in failed.iterdir()} == {"error.txt", "log.txt"}
    done = next(file.parent for file in folder.glob("*/summary.json"))
    assert "16 images to train" in (done / "log.txt").read_text()
    assert main(["report", str(folder)]) == 0
    assert f"failed: {failed}: " in capfd.readouterr().err
    shutil.copytree(class_folders, pictures)
    assert main(words) == 0
    assert outcomes(capfd.readouterr().out) == ["done", "already done"]
    assert not (failed / "error.txt").exists()
    assert (failed / "summary.json").exists()


def test_an_error_of_the_program_leaves_its_traceback(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("mtl.cli.launch.train", broken)
    assert main(sweep(class_folders, tmp_path / "grid", "seed=0,1")) == 1
    assert outcomes(capfd.readouterr().out) == ["failed", "failed"]
    text = next((tmp_path / "grid").glob("seed=0-*/error.txt")).read_text()
    assert text.startswith("ZeroDivisionError: a defect\n\nTraceback")


def test_a_job_of_another_process_is_left_to_it(class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "grid"
    assert main(sweep(class_folders, folder, "seed=0,1")) == 0
    taken = next(folder.glob("seed=0-*"))
    (taken / "summary.json").unlink()
    capfd.readouterr()
    with locked(taken):
        assert main(sweep(class_folders, folder, "seed=0,1,2")) == 0
    printed = capfd.readouterr().out
    assert outcomes(printed) == ["in use", "already done", "done"]
    assert f"job 0 is left to process {os.getpid()} on" in printed
    assert not (taken / "summary.json").exists()


@pytest.mark.slow
def test_a_job_that_another_process_takes_first_is_left_to_it_by_ranks_too(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = sweep(class_folders, tmp_path / "grid", "trainer.devices=2", "seed=0")
    assert main(words) == 0
    (summary,) = (tmp_path / "grid").glob("*/summary.json")
    summary.unlink()
    capfd.readouterr()
    monkeypatch.setattr("mtl.cli.job.holder", lambda _: None)  # the other process came between this look and the start
    with locked(summary.parent):
        assert main(words) == 0
    assert outcomes(capfd.readouterr().out) == ["in use"]


def test_a_dry_run_prints_the_jobs_and_makes_nothing(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grid"
    assert main([*sweep(class_folders, folder, "seed=0,1"), "--dry-run"]) == 0
    printed = capfd.readouterr().out
    assert outcomes(printed) == ["new", "new"]
    assert "2 jobs: 2 new; no run has finished" in printed
    assert not folder.exists()
    assert main(sweep(class_folders, folder, "seed=0,1")) == 0
    (next(folder.glob("seed=1-*")) / "summary.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    assert main([*sweep(class_folders, folder, "seed=0,1,2"), "--dry-run"]) == 0
    printed = capfd.readouterr().out
    assert outcomes(printed) == ["done", "interrupted", "new"]
    assert "about 1 s of training, one job after the other, as fast as the 1 finished run" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_the_configurations_of_all_jobs_are_one_yaml_stream(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*sweep(class_folders, tmp_path / "grid", "seed=0,1"), "--cfg", "job"]) == 0
    assert [config["seed"] for config in yaml.safe_load_all(capfd.readouterr().out)] == [0, 1]
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    ("number", "launcher"), [(signal.SIGINT, []), pytest.param(signal.SIGTERM, JOBLIB, marks=pytest.mark.slow)]
)
def test_a_stopped_sweep_goes_on_with_the_command_that_it_says(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals, launcher: list[str]
) -> None:
    folder = tmp_path / "grid"
    settings = ["evaluate_every=100000", "checkpoint_every=100000", *launcher, *ENDLESS, "rounds=100000"]
    process = start(sweep(class_folders, folder, *settings, "seed=0,1,2"))
    for seed in range(2 if launcher else 1):
        while not (begun := list(folder.glob(f"seed={seed}-*"))):
            assert process.poll() is None, process.communicate()
        wait_for_round(begun[0], 2, process)
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert outcomes(out) == (["stopped", "stopped", "not started"] if launcher else ["stopped", "not started", "not started"])
    command = shlex.split(errors.splitlines()[-1])
    assert command[:3] == ["mtl", "train", "-m"]
    assert main([*command[1:], "--dry-run"]) == 0
    assert outcomes(capfd.readouterr().out) == ["interrupted" if row == "stopped" else "new" for row in outcomes(out)]


def test_an_interrupted_job_ends_in_the_numbers_of_one_that_was_not(class_folders: Path, tmp_path: Path) -> None:
    words = ["schedule=constant", "rounds=3", "seed=0"]
    assert main(sweep(class_folders, tmp_path / "whole", *words)) == 0
    assert main(sweep(class_folders, tmp_path / "cut", "schedule=constant", "rounds=2", "seed=0")) == 0
    assert main(sweep(class_folders, tmp_path / "cut", *words)) == 0
    whole, cut = (next((tmp_path / name).glob("*/summary.json")) for name in ("whole", "cut"))
    assert whole.parent.name == cut.parent.name
    assert without_time(json.loads(cut.read_text())) == without_time(json.loads(whole.read_text()))


@pytest.mark.slow
def test_processes_of_joblib_share_the_jobs_and_their_table(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, nowhere = tmp_path / "grid", tmp_path / "nowhere"
    assert (
        main(sweep(class_folders, folder, *JOBLIB, f"data.root={nowhere},{class_folders}", "client.learning_rate=.1,1e-1")) == 1
    )
    out, errors = capfd.readouterr()
    assert outcomes(out) == ["failed", "skipped", "done", "skipped"]
    assert out.count("the run of an earlier job") == 2
    assert f"job 0 (data.root={nowhere} client.learning_rate=0.1): " in errors
    assert len(runs(folder)) == 1
    assert not list(folder.glob(".*"))


def test_a_job_records_the_command_of_its_own_run(class_folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a sweep"
    assert main(sweep(class_folders, folder, "seed=0,1")) == 0
    run = next(folder.glob("seed=1-*"))
    said = json.loads((run / "environment.json").read_text())["command"]
    again = shlex.split(said)
    assert again[:2] == ["mtl", "train"]
    assert "seed=1" in again
    shutil.rmtree(run)
    assert main(again[1:]) == 0
    assert (run / "summary.json").exists()
    assert json.loads((run / "environment.json").read_text())["command"] == said


def test_a_sweep_writes_one_report_and_names_its_runs_by_what_is_swept(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grid"
    assert (
        main([word for word in sweep(class_folders, folder, "seed=0,1", "write_report=auto") if word != "write_report=false"])
        == 0
    )
    assert f"report: {folder / 'report.html'}" in capfd.readouterr().out
    assert not list(folder.glob("*/report.html"))
    page = folder / "report.html"
    before = page.read_bytes()
    assert main(sweep(class_folders, folder, "seed=0,1,2", "name=mine")) == 0  # write_report=false
    assert page.read_bytes() == before
    names = sorted(yaml.safe_load(file.read_text())["name"] for file in folder.glob("*/config.yaml"))
    assert names == ["mine_seed=2", "seed=0", "seed=1"]
