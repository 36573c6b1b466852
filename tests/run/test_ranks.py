"""Several processes for one run: the same result, and failures with their reasons."""

import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import OmegaConf

from mtl.base.types import Diverged, Interrupted, NoObjective
from mtl.federation.ranks import Ranks, split_work
from mtl.learning.checkpoints import read_checkpoint
from mtl.run import group
from mtl.run.build import build_data
from mtl.run.group import environment
from mtl.run.spawn import RAISED, RankLog, _Logs, _reason, inside_rank, run_ranks
from mtl.run.train import train
from tests.run.test_train import numbers, small, without_time


@given(st.lists(st.integers(1, 50), max_size=6), st.integers(1, 3))
@settings(deadline=None)
def test_work_is_split_whole_and_within_a_third_of_the_best(costs: list[int], count: int) -> None:
    parts = split_work(costs, count)
    assert sorted(place for part in parts for place in part) == list(range(len(costs)))
    load = max(sum(costs[place] for place in part) for part in parts)
    every_way = itertools.product(range(count), repeat=len(costs))
    best = min(max(sum(c for c, r in zip(costs, way, strict=True) if r == rank) for rank in range(count)) for way in every_way)
    assert load <= 4 / 3 * best  # Graham 1969


def test_alone_there_is_one_rank() -> None:
    ranks, total = Ranks(), torch.ones(3)
    ranks.sum([total])
    assert ranks.is_first
    assert total.tolist() == [1.0, 1.0, 1.0]
    assert ranks.share([3.0, 1.0]) == [0, 1]
    assert not inside_rank()
    ranks.require_same({"torch": "1"})


os.environ["MTL_TESTED_BY"] = str(os.getpid())
MARK = f"MTL_TESTED_BY={os.getpid()}".encode()


@pytest.mark.parametrize(
    ("variables", "inside"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, False),  # a batch script, or salloc's shell
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}, False),  # an interactive step
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, True),  # srun
        ({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "1"}, False),  # torchrun, started by srun on each machine
        ({"WORLD_SIZE": "2"}, True),
    ],
)
def test_ranks_of_slurm_are_those_that_srun_started(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], inside: bool
) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert inside_rank() == inside
    assert isinstance(environment(), SLURMEnvironment) == (inside and "WORLD_SIZE" not in variables)


def test_a_rank_says_whom_it_waits_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, text in {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "node7", "MASTER_PORT": "4321"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(group, "PATIENCE", 0.01)
    monkeypatch.setattr(group.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(group.dist, "init_process_group", lambda *_, **__: time.sleep(0.2))
    with group.process_group("cpu"):
        pass
    assert "rank 2 waits for the other 3 of 4 processes at node7:4321" in caplog.text


def test_srun_must_say_how_many_tasks_a_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ValueError, match="srun needs --ntasks-per-node"):
        environment()


def test_a_script_inside_an_allocation_of_several_tasks_trains_alone(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "train.sh", "SLURM_PROCID": "0"}
    for name, text in (inside | {"SLURM_JOB_ID": "77", "SLURM_NODELIST": "localhost", "SLURM_LOCALID": "0"}).items():
        monkeypatch.setenv(name, text)
    assert train(small(class_folders, "rounds=1"), tmp_path / "run")["test/auroc"] is not None


RICH = ["algorithm=fedavgm", "keep=heads", "sampling.dropout=0.3", "partition=iid", "partition.num_clients=3", "assignment=all"]


def test_two_ranks_agree_with_one_and_say_the_same_and_a_file_named_as_a_module_of_python_stops_neither(
    class_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "statistics.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    build_data(small(class_folders, *RICH))  # decoded once, which is logged
    caplog.set_level(logging.INFO)
    caplog.clear()
    one = train(small(class_folders, *RICH), tmp_path / "one")
    messages = [(record.name, record.levelname, record.message) for record in caplog.records if record.name.startswith("mtl")]
    caplog.clear()
    two = small(class_folders, *RICH, "trainer.devices=2")
    whole = train(two, tmp_path / "two")
    assert [name for name, _, _ in messages] == [
        "mtl.data.splits",
        "mtl.run.learners",
    ]  # the split, and what stays on the clients
    assert [
        (record.name, record.levelname, record.message) for record in caplog.records if record.name.startswith("mtl")
    ] == messages
    by_name = {(row[0], row[1]): row[2] for row in numbers(tmp_path / "one")}
    for row in numbers(tmp_path / "two"):
        if row[0] != "round":
            assert float(row[2]) == pytest.approx(float(by_name.pop((row[0], row[1]))), rel=1e-5, abs=1e-7), row
    assert set(by_name) == {("round", "metric")}
    params = [read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two")]
    for name, value in params[0]["state_dict"].items():
        assert torch.allclose(params[1]["state_dict"][name], value, rtol=1e-5, atol=1e-6), name
    assert without_time(one).keys() == without_time(whole).keys()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_that_are_stopped_leave_no_process_and_go_on_where_they_were(
    class_folders: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = small(class_folders, *RICH, "trainer.devices=2", "rounds=300", "evaluate_every=100", "checkpoint_every=5")
    whole = train(config, tmp_path / "whole")
    run_dir, output = tmp_path / "cut", tmp_path / "output.txt"
    script = tmp_path / "run.py"
    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom omegaconf import OmegaConf\nfrom mtl.run.train import train\n"
        f"train(OmegaConf.load({str(tmp_path / 'config.yaml')!r}), Path({str(run_dir)!r}))\n"
    )
    with output.open("w") as file:
        process = subprocess.Popen([sys.executable, str(script)], stderr=file)
        wait_for(lambda: (run_dir / "metrics.csv").exists() and len(numbers(run_dir)) > 200)
        process.send_signal(number)
        process.wait(60)
    wait_for(lambda: not ranks_alive())
    assert not (run_dir / "summary.json").exists()
    if number == signal.SIGTERM:
        assert "Interrupted: stopped after round" in output.read_text()
    config.resume = True
    assert without_time(train(config, run_dir)) == without_time(whole)
    assert numbers(run_dir) == numbers(tmp_path / "whole")


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ranks_alive() -> list[str]:
    """The processes of ranks that are still there, of those that these tests started."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"mtl.run.rank" in path.read_bytes() and MARK in path.with_name("environ").read_bytes():
                alive.append(path.parent.name)
    return alive


FAKE_RANK = """
import pathlib, signal, sys, time
folder, rank, what = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def stop(number, frame):
    (folder / "error0.json").write_text('{"kind": "Interrupted", "message": "stopped after round 2"}')
    sys.exit(1)
if what == "training":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
elif what == "building":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
if rank == "0" and what != "importing":
    (folder / "ready").touch()
(folder / f"up{rank}").touch()
time.sleep(60)
"""


class Terminated(Exception):
    pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["importing", "building", "training"])
def test_a_signal_does_to_starting_ranks_what_it_does_to_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, what: str
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(rank: int, count: int, port: int, task: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", FAKE_RANK, str(task.parent), str(rank), what]
        started.append(subprocess.Popen(words, start_new_session=True))
        if rank + 1 == count:

            def interrupt() -> None:
                wait_for(lambda: all((task.parent / f"up{rank}").exists() for rank in range(count)))
                os.kill(os.getpid(), number)

            threading.Thread(target=interrupt).start()
        return started[-1]

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    monkeypatch.setattr("mtl.run.spawn._start", start)
    monkeypatch.setattr("mtl.run.spawn.GRACE", 0.1 if what == "training" else 60.0)
    before = signal.signal(signal.SIGTERM, terminate)
    expected = Interrupted if what == "training" else {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}[number]
    try:
        with pytest.raises(expected):
            run_ranks(2, {}, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert all(process.poll() is not None for process in started)


def test_what_ranks_log_is_logged_once_and_as_often_as_one_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for rank, messages in enumerate((["all", "again", "again"], ["all", "mine", "again"])):
        handler = RankLog(tmp_path / f"log{rank}.jsonl")
        for message in messages:
            handler.emit(logging.LogRecord("mtl.somewhere", logging.WARNING, "file.py", 3, "%s said", (message,), None))
    logs = _Logs(tmp_path, 3)
    logs.pass_on()
    logs.pass_on()
    assert [record.getMessage() for record in caplog.records] == ["all said", "again said", "again said", "mine said"]
    assert {(record.name, record.levelname, record.lineno) for record in caplog.records} == {("mtl.somewhere", "WARNING", 3)}


@pytest.mark.slow
def test_what_a_rank_finds_wrong_is_raised(class_folders: Path, tmp_path: Path) -> None:
    wild = ["client.learning_rate=1e30", "schedule=constant", "loss=bce", "heads=linear", "trainer.devices=2"]
    with pytest.raises(Diverged, match=r"client \d is not finite in round \d"):
        train(small(class_folders, *wild), tmp_path / "run")
    assert not ranks_alive()


@pytest.mark.slow
def test_a_refused_objective_is_raised_by_ranks(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(NoObjective, match=r"objective must be null or one of val/rank1, .*, got test/rank1"):
        train(small(class_folders, "objective=test/rank1", "trainer.devices=2"), tmp_path / "other")


@pytest.mark.parametrize("kind", RAISED)
def test_an_error_of_a_rank_keeps_its_kind(kind: str) -> None:
    error = RAISED[kind]("said")
    assert next(name for name, raised in RAISED.items() if isinstance(error, raised)) == kind


def test_ranks_that_cannot_be_are_refused(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for overrides, message in (
        (["mode=centralised", "trainer.devices=2"], r"mode=centralised trains on one device: trainer.devices must be 1, got 2"),
        (["trainer.num_nodes=2"], r"trainer.num_nodes=2 needs torchrun or srun"),
        (["trainer.devices=0"], r"trainer.devices must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            train(small(class_folders, *overrides), tmp_path / "run")
    ranks = Ranks()
    ranks.count = 4  # as torchrun --nproc-per-node=4 would have it
    monkeypatch.setattr("mtl.run.train.inside_rank", lambda: True)
    monkeypatch.setattr("mtl.run.train.process_group", lambda accelerator: contextlib.nullcontext(ranks))
    with pytest.raises(
        ValueError, match=r"trainer.devices=2 times trainer.num_nodes=1 must be the 4 processes that were started"
    ):
        train(small(class_folders, "trainer.devices=2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ranks_that_see_different_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = [{"torch": "2.14", "data": "a"}, {"torch": "2.13", "data": "a"}]

    def gather(filled: list[dict[str, str]], mine: dict[str, str]) -> None:
        filled[:] = theirs

    ranks = Ranks()
    ranks.count = 2
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    with pytest.raises(
        ValueError,
        match=r"all ranks must have the same data, configuration and versions, got different torch \(2.13 on rank 1, 2.14 on rank 0\)",
    ):
        ranks.require_same(theirs[0])


def test_what_a_rank_could_not_mend_is_raised_where_it_was_started(tmp_path: Path) -> None:
    """A rank whose peer has left on the user's word must say nothing: only who started both knows."""
    (tmp_path / "task.json").write_text(json.dumps({"config": {}, "run_dir": str(tmp_path), "log_level": 20}))
    program = (
        "import sys\nfrom mtl.run import rank\n"
        "def lost(*_):\n    raise RuntimeError('Connection closed by peer')\n"
        "rank.train = lost\nsys.exit(rank.main())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "task.json")]
    done = subprocess.run(command, env=os.environ | {"RANK": "1"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    reason = str(_reason(tmp_path, [0, 1]))
    assert reason.startswith("rank 1 ended with exit code 1:\nTraceback")
    assert "RuntimeError: Connection closed by peer" in reason
    assert "its output is above" in str(_reason(tmp_path / "nowhere", [0, 1]))
