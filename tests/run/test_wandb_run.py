"""What is recorded at W&B, and that nothing of it ends or delays a run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from mtl.run import wandb_run
from mtl.run.config import compose
from mtl.run.directory import progress
from mtl.run.tracking import Tracker, read_rounds
from mtl.run.train import train
from mtl.run.wandb_names import metric_name
from mtl.run.wandb_run import WandbOptions
from tests.run.wandb_records import read_segments


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
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT", 4.0)
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

    url, starting_step = "https://wandb.example.org/run", 0

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.logged, self.defined = arguments, [], []
        self.id, self.offline = arguments.get("id", "chosen"), arguments["mode"] == "offline"
        self.summary: dict[str, float] = {}
        self.artifacts: list[Any] = []

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def define_metric(self, name: str, step_metric: str | None = None, summary: str | None = None) -> None:
        self.defined.append((name, step_metric, summary))

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, metrics))

    def finish(self, exit_code: int = 0) -> None:
        self.logged.append((None, {"exit": exit_code}))


def test_a_resumed_offline_run_holds_the_earlier_rounds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    runs: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    offline = WandbOptions("offline", project="team/faces", name="x" * 300, tags=["a"], job_type="train", notes="why")
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
    assert first.defined == [("round", None, None), ("train/*", "round", None)]
    assert first.arguments["id"] == second.arguments["id"]
    expected = {"entity": "team", "project": "faces", "name": "x" * 128, "tags": ["a"], "job_type": "train", "notes": "why"}
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
    tracker = Tracker(tmp_path, {}, wandb=WandbOptions("online"), last_round=1)
    tracker.log(2, {"train/loss": 0.25})
    tracker.abandon()
    monkeypatch.setattr(FakeRun, "starting_step", 2)  # rounds up to the first have reached the server
    with caplog.at_level("INFO"):
        Tracker(tmp_path, {}, wandb=WandbOptions("online"), last_round=2).abandon()
    assert [step for step, _ in runs[1].logged] == [1, 2, None]
    assert [step for step, _ in runs[2].logged] == [2, None]
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
        from mtl.run.wandb_run import has_account
        for more in json.loads(sys.argv[1]):
            if os.fork() == 0:
                os.environ.update(more)
                print("account", has_account(), flush=True)
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


SMALL = [
    "+experiment=synthetic",
    "rounds=6",
    "evaluate_every=2",
    "checkpoint_every=1",
    "engine.backend=loop",
]
SMALL += ["trainer.accelerator=cpu", "write_report=false", "tracking.wandb=offline", "sampling.cohort=2"]
KILLED = """if True:
    import os, signal, sys
    from pathlib import Path
    from mtl.run import train as module
    from mtl.run.config import compose
    from mtl.run.tracking import Tracker

    log, last, stage = Tracker.log, int(sys.argv[2]), sys.argv[3]
    def log_or_die(self, round, metrics):
        log(self, round, metrics)
        if round == last:
            os.kill(os.getpid(), signal.SIGKILL)
    if stage == "round":
        Tracker.log = log_or_die
    else:
        Tracker.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    module.train(compose(sys.argv[4:] + ["resume=true"]), Path(sys.argv[1]))
"""


def without_wandb() -> dict[str, str]:
    """The environment of a process that shares nothing of W&B with this one."""
    return {name: text for name, text in os.environ.items() if not name.startswith("WANDB")}


def killed(run_dir: Path, last: int, stage: str = "round") -> None:
    """Train in a process that is killed in round `last`, or once the summary is written."""
    words = [sys.executable, "-c", KILLED, str(run_dir), str(last), stage, *SMALL]
    assert subprocess.run(words, check=False, env=without_wandb()).returncode == -signal.SIGKILL


def test_after_two_kills_one_segment_holds_every_row(tmp_path: Path) -> None:
    killed(tmp_path, 3)
    killed(tmp_path, 5)
    assert len(read_segments(tmp_path)) == 1
    train(compose([*SMALL, "resume=true"]), tmp_path)
    (segment,) = read_segments(tmp_path)
    rows = read_rounds(tmp_path / "metrics.csv")
    assert sorted(rows) == [1, 2, 3, 4, 5, 6]
    assert segment.rounds == {round: {metric_name(name): value for name, value in row.items()} for round, row in rows.items()}
    assert segment.exit_code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert segment.summary["test/rank1"] == summary["test/rank1"]
    assert segment.path.parent.name.startswith("offline-run-")
    before = content(tmp_path)
    train(compose([*SMALL, "resume=true", "engine.backend=vmap"]), tmp_path)
    assert content(tmp_path) == before
    (tmp_path / "wandb.json").write_text(json.dumps({"id": "kept", "open": True}))
    segment.path.unlink()
    train(compose([*SMALL, "resume=true"]), tmp_path)
    (again,) = read_segments(tmp_path)
    assert (again.rounds, again.about.run_id) == (segment.rounds, "kept")
    assert content(tmp_path)["summary.json"] == before["summary.json"]


def content(run_dir: Path) -> dict[str, bytes]:
    """The files of a run directory but its lock."""
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_run_that_was_killed_before_the_end_of_its_record_is_not_done(tmp_path: Path) -> None:
    killed(tmp_path, 0, "finish")
    config: Any = OmegaConf.to_container(compose(SMALL), resolve=True)
    assert (tmp_path / "summary.json").exists()
    assert progress(tmp_path, config) == "interrupted"
    train(compose([*SMALL, "resume=true"]), tmp_path)
    (segment,) = read_segments(tmp_path)
    assert segment.exit_code == 0
    assert progress(tmp_path, config) == "done"


def test_what_a_page_at_wandb_shows_is_named_by_what_differs(tmp_path: Path) -> None:
    config = {
        **{"mode": "federated", "seed": 3, "name": "x", "tracking": {"wandb": "offline"}, "resume": True},
        "data": {"_target_": "mtl.data.faces.orl", "_partial_": False, "_convert_": "all", "root": "data"},
        "loss": {"_target_": "mtl.losses.by_kind.ByKind", "attributes": {"_target_": "mtl.losses.focal.Focal", "gamma": [1, 2]}},
        "algorithm": {"_target_": "mtl.federation.algorithms.fedprox.fedprox", "mu": 0.1},
        "server": {"_target_": "mtl.federation.server.mean"},
        "client": {"_target_": "mtl.federation.algorithms.local_sgd.LocalSGD", "learning_rate": 0.1},
    }
    tracker = Tracker(
        tmp_path, config, wandb=WandbOptions("offline", group="grid", name="seed=3", tags=["mine", "orl"], notes="why")
    )
    tracker.log(1, {"train/loss": 0.5, "val/rank1": 0.25, "val/smiling/auroc": 0.5, "monitor/rank1": 0.5})
    tracker.finish({"test/rank1": 0.5, "test/smiling/auroc": 0.75})
    (segment,) = read_segments(tmp_path)
    about = segment.about
    shown = (about.run_group, about.display_name, about.job_type, about.notes, list(about.tags))
    assert shown == ("grid", "seed=3", "federated", "why", ["orl", "federated", "fedprox", "mean", "LocalSGD", "mine"])
    assert {key: value for key, value in segment.config.items() if key != "_wandb"} == {
        **{"mode": "federated", "seed": 3, "run_dir": str(tmp_path.resolve()), "data": {"name": "orl", "root": "data"}},
        "loss": {"name": "ByKind", "attributes": {"name": "Focal", "gamma": [1, 2]}},
        **{"algorithm": {"name": "fedprox", "mu": 0.1}, "server": {"name": "mean"}},
        **{"client": {"name": "LocalSGD", "learning_rate": 0.1}},
    }
    assert segment.rounds[1] == {"train/loss": 0.5, "val/rank1": 0.25, "task/smiling/val_auroc": 0.5, "monitor/rank1": 0.5}
    assert segment.summary["task/smiling/test_auroc"] == 0.75
    best = {metric.glob_name: (metric.summary.max, metric.summary.min) for metric in segment.defined if metric.glob_name}
    assert best == {"train/*": (False, False), "val/*": (True, True), "task/*": (False, False), "monitor/*": (False, False)}


@pytest.mark.parametrize("project", ["a/b/c", "", "faces#1", "x" * 129])
def test_a_project_that_wandb_refuses_is_refused_first(project: str) -> None:
    with pytest.raises(ValueError, match=r"tracking\.project must be PROJECT or ENTITY/PROJECT"):
        WandbOptions(project=project)


def test_an_agent_chooses_the_id_and_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    runs: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    monkeypatch.setenv("WANDB_RUN_ID", "abc12345")
    Tracker(tmp_path, {}, wandb=WandbOptions("online")).finish({})
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": runs[0].arguments["id"]} != {"id": "abc12345"}
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    Tracker(tmp_path, {}, wandb=WandbOptions("online")).finish({})
    assert not {"id", "project", "entity"} & set(runs[1].arguments)
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": "chosen"}
    assert runs[1].arguments["settings"].x_disable_stats
    Tracker(tmp_path, {}, wandb=WandbOptions("online", system=True)).finish({})
    assert not runs[2].arguments["settings"].x_disable_stats


ONLINE = """if True:
    import logging, os, sys, time
    from pathlib import Path
    sys.path.insert(0, os.getcwd())
    from tests.run.wandb_records import Server
    from mtl.run import wandb_run
    from mtl.run.tracking import Tracker
    from mtl.run.wandb_run import WandbOptions

    logging.basicConfig(format="%(message)s")
    server = Server()
    os.environ |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
    wandb_run.FINISH_TIMEOUT = 3.0
    tracker = Tracker(Path(sys.argv[1]), {"seed": 0}, wandb=WandbOptions("online"))
    for round in (1, 2, 3):
        tracker.log(round, {"train/loss": 0.5 * round})
    server.dead = True
    start = time.monotonic()
    tracker.finish({"test/rank1": 0.25})
    print(f"took {time.monotonic() - start:.1f}")
"""


def test_a_server_that_is_gone_at_the_end_delays_little_and_leaves_a_whole_offline_run(tmp_path: Path) -> None:
    words = [sys.executable, "-c", ONLINE, str(tmp_path)]
    done = subprocess.run(words, env=without_wandb(), capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout.split()[-1]) < 60
    (segment,) = read_segments(tmp_path)
    assert segment.path.parent.name.startswith("offline-run-")
    assert f"`wandb sync {segment.path.parent}` sends it" in done.stderr
    assert segment.rounds == {round: {"train/loss": 0.5 * round} for round in (1, 2, 3)}
    assert (segment.summary["test/rank1"], segment.exit_code) == (0.25, 0)
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": segment.about.run_id}
