import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtl.base.files import atomic_write, write_json
from mtl.run import environment as environment_module
from mtl.run import tracking
from mtl.run.environment import environment
from mtl.run.tracking import Tracker, WandbOptions

NONE = WandbOptions("disabled")


def test_an_offline_run_is_recorded_without_an_account_or_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    tracker = Tracker(tmp_path, {"seed": 0}, wandb=WandbOptions(group="sweep"))
    tracker.log(1, {"train/loss": 0.5, "val/rank1": None})
    picture = tmp_path / "map.png"
    Image.new("L", (4, 4)).save(picture)
    tracker.finish({"test/rank1": 0.25, "test/auroc": None}, [picture])
    recorded = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(recorded) == 1
    assert list((tmp_path / "wandb").rglob("*.png"))


def test_a_server_out_of_reach_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "WANDB_TIMEOUT", 4.0)
    tracker = Tracker(tmp_path, {"seed": 0}, wandb=WandbOptions("online"))
    tracker.log(1, {"train/loss": 0.5})
    tracker.finish({"test/rank1": 0.25})
    assert "W&B cannot be reached" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_the_rule_that_chose_the_round_is_text_and_stays_out_of_the_table_of_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    runs: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    summary = {"test/rank1": 0.25, "fit/chosen_by": "val/rank1", "val/best_rank1": 0.5, "val/best_precision": None}
    Tracker(tmp_path, {}, wandb=WandbOptions("offline")).finish(summary)
    (run,) = runs
    assert run.summary == {"test/rank1": 0.25, "fit/chosen_by": "val/rank1", "val/best_rank1": 0.5}
    assert run.logged[0][1]["summary"].data == [["test/rank1", 0.25], ["val/best_rank1", 0.5]]
    assert "W&B fails" not in caplog.text


class FakeRun:
    """What a run at W&B is asked to do."""

    url = "https://wandb.example.org/run"

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.logged, self.defined = arguments, [], []
        self.summary: dict[str, float] = {}
        self.artifacts: list[Any] = []

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, metrics))

    def finish(self, exit_code: int = 0) -> None:
        self.logged.append((None, {"exit": exit_code}))


def test_a_resumed_offline_run_holds_the_earlier_rounds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    runs: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    offline = WandbOptions("offline", project="team/faces", name="x" * 300, tags=["a"], job_type="train")
    tracker = Tracker(tmp_path, {}, wandb=offline)
    for round in (1, 2, 3):
        tracker.log(round, {"train/loss": round / 2})
    tracker.abandon()
    resumed = Tracker(tmp_path, {}, wandb=offline, last_round=2)
    resumed.log(3, {"train/loss": 1.5})
    resumed.abandon()
    first, second = runs
    assert second.logged[:3] == first.logged[:3]
    assert first.logged[0] == (1, {"round": 1, "train/loss": 0.5})
    assert first.defined == [("round", None), ("*", "round")]
    assert first.arguments["id"] == second.arguments["id"]
    expected = {"entity": "team", "project": "faces", "name": "x" * 128, "tags": ["a"], "job_type": "train"}
    assert expected.items() <= first.arguments.items()


def test_a_resumed_online_run_sends_each_round_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    runs: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    tracker = Tracker(tmp_path, {}, wandb=WandbOptions("online"))
    tracker.log(1, {"train/loss": 0.5})
    tracker.abandon()
    with caplog.at_level("INFO"):
        Tracker(tmp_path, {}, wandb=WandbOptions("online"), last_round=1).abandon()
    assert runs[1].logged == [(None, {"exit": 1})]
    assert "W&B: https://wandb.example.org/run" in caplog.text


@pytest.mark.parametrize("model", ["best", "last"])
def test_the_tested_model_is_an_artifact_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    import wandb

    runs: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    (tmp_path / "config.yaml").write_text("seed: 0")
    (tmp_path / "checkpoints").mkdir()
    for name in {"last", model}:
        (tmp_path / "checkpoints" / f"{name}.ckpt").write_text(name)
    Tracker(tmp_path, {}, wandb=WandbOptions("offline")).finish({})
    Tracker(tmp_path, {}, wandb=WandbOptions("offline", log_model=True)).finish({})
    assert runs[0].artifacts == []
    (artifact,) = runs[1].artifacts
    assert artifact.type == "model"
    assert sorted(artifact.manifest.entries) == [f"checkpoints/{model}.ckpt", "config.yaml"]
    # Its files are staged where W&B's others lie.
    assert tmp_path / "wandb" in Path(artifact.manifest.entries["config.yaml"].local_path).parents


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_wandb_never_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    import wandb

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no home")

    if what == "init":
        monkeypatch.setattr(wandb, "init", broken)
    else:
        monkeypatch.setattr(wandb, "init", lambda **arguments: FakeRun(**arguments))
        monkeypatch.setattr(FakeRun, what, broken)
    tracker = Tracker(tmp_path, {}, wandb=WandbOptions("offline"))
    tracker.log(1, {"train/loss": 0.5})
    tracker.log(2, {"train/loss": 0.5})
    tracker.finish({"test/auroc": 0.5})
    assert caplog.text.count("W&B failed (RuntimeError: no home): the run continues") == 1
    assert (tmp_path / "metrics.csv").read_text().count("train/loss") == 2


@pytest.mark.parametrize(
    ("mode", "account", "chosen"), [("nonsense", True, "online"), ("dryrun", True, "offline"), ("", False, "offline")]
)
def test_the_environment_says_the_mode_where_it_makes_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, account: bool, chosen: str
) -> None:
    import wandb

    runs: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    monkeypatch.setattr(wandb, "login", lambda **_: account)
    monkeypatch.setenv("WANDB_MODE", mode)
    Tracker(tmp_path, {}).abandon()
    assert runs[0].arguments["mode"] == chosen
    assert os.environ["WANDB_MODE"] == mode


def test_an_account_is_what_wandb_takes_for_one(tmp_path: Path) -> None:
    """Whatever the host of its login is named, and with a server of one's own."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.example.org\n  login user\n  password " + "0" * 40 + "\n")
    netrc.chmod(0o600)
    theirs = {"NETRC": str(netrc)}
    # W&B reads its environment once a process.
    code = """if True:
        import json, os, sys
        from mtl.run.tracking import _has_account
        for more in json.loads(sys.argv[1]):
            if os.fork() == 0:
                os.environ.update(more)
                print("account", _has_account(), flush=True)
                os._exit(0)
            os.wait()"""
    environments = json.dumps([{}, theirs, theirs | {"WANDB_BASE_URL": "https://wandb.example.org"}])
    base = {name: text for name, text in os.environ.items() if not name.startswith("WANDB")}
    environment = base | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_SILENT": "true"}
    output = subprocess.run(
        [sys.executable, "-c", code, environments], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert [line for line in output.splitlines() if line.startswith("account")] == [
        "account False",
        "account False",
        "account True",
    ]


def test_no_commit_of_somebody_elses_repository_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True)

    git("init", "-q")
    (tmp_path / "notes.txt").write_text("mine")
    git("add", "notes.txt")
    git("commit", "-qm", "mine")
    installed = tmp_path / ".venv" / "environment.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(environment_module, "__file__", str(installed))
    assert (environment()["commit"], environment()["dirty"]) == (None, False)
    git("add", "-f", str(installed))
    git("commit", "-qm", "ours")
    assert len(environment()["commit"]) == 40


def test_a_recorded_command_can_be_pasted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mtl", "train", "data.root=a b", "loss.gamma=[1,2]"])
    recorded = environment()
    assert shlex.split(recorded["command"]) == sys.argv
    assert recorded["cpu"]
    assert isinstance(recorded["gpus"], list)


def test_numbers_are_kept_exactly_and_a_torn_line_is_dropped_on_resume(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, {}, wandb=NONE)
    tracker.log(1, {"train/loss": 0.1 + 0.2})
    tracker.log(2, {"train/loss": 1 / 3})
    tracker.abandon()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "3,train/lo")
    Tracker(tmp_path, {}, wandb=NONE, last_round=1).abandon()
    assert path.read_text() == "round,metric,value\n1,train/loss,0.30000000000000004\n"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
