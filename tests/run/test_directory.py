"""Whose a run directory is, who works in it, and what a later start may differ by."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtl.run.directory import holder, locked, open_run_directory, progress, update_config
from mtl.run.identity import fingerprint


def begun(run_dir: Path, config: dict[str, Any]) -> Path:
    """A run directory after a round."""
    assert open_run_directory(run_dir, config, resume=False) is None
    (run_dir / "metrics.csv").write_text("round,metric,value\n1,train/loss,0.5\n")
    return run_dir


def test_a_folder_of_another_configuration_names_what_differs(tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run", {"seed": 0, "loss": {"margin": 0.4}})
    with pytest.raises(ValueError, match=r"differs in loss.margin \(0.4 there, 0.5 now\), rounds \(None there, 9 now\)"):
        open_run_directory(run_dir, {"seed": 0, "loss": {"margin": 0.5}, "rounds": 9}, resume=True)
    same = {"seed": 0, "loss": {"margin": 0.4}, "resume": True, "output_dir": "elsewhere"}
    assert open_run_directory(run_dir, same, resume=True) is None


@pytest.mark.parametrize("content", ["", "a: [1", "- 1"])
def test_a_damaged_configuration_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config.yaml is damaged"):
        open_run_directory(tmp_path, {"seed": 0}, resume=True)


def test_a_start_that_came_to_nothing_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert open_run_directory(run_dir, {"seed": 0}, resume=False) is None
    (run_dir / "metrics.csv").write_text("round,metric,value\n")
    assert open_run_directory(run_dir, {"seed": 1}, resume=False) is None
    assert (run_dir / "config.yaml").read_text() == "seed: 1\n"
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"differs in seed \(1 there, 2 now\)"):
        open_run_directory(run_dir, {"seed": 2}, resume=False)


def test_two_processes_cannot_work_in_one_folder_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code = f"""
import sys
from pathlib import Path
from mtl.run.directory import locked
with locked(Path({str(run_dir)!r})):
    print("there", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    with pytest.raises(ValueError, match=rf"is in use by process {process.pid} on \S+; wait for it"), locked(run_dir):
        pass
    process.kill()
    process.communicate()
    with locked(run_dir), pytest.raises(ValueError, match="in use"), locked(run_dir):
        pass
    assert open_run_directory(run_dir, {"seed": 0}, resume=False) is None


def test_whose_a_folder_is_can_be_asked_without_taking_it(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") is None
    with locked(tmp_path / "run"):
        assert str(holder(tmp_path / "run")).startswith(f"process {os.getpid()} on ")
    assert holder(tmp_path / "run") is None


def test_what_a_failed_start_leaves_is_no_foreign_file(tmp_path: Path) -> None:
    for name in ("log.txt", "error.txt"):
        (tmp_path / name).write_text("why")
    with locked(tmp_path):
        assert open_run_directory(tmp_path, {"seed": 0}, resume=False) is None


def test_a_run_is_done_once_it_has_a_summary_of_all_its_rounds(tmp_path: Path) -> None:
    config = {"seed": 0, "rounds": 2, "schedule": {"shape": "constant"}}
    assert progress(tmp_path, config) == "new"
    run_dir = begun(tmp_path / "run", config)
    assert progress(run_dir, config) == "interrupted"
    (run_dir / "summary.json").write_text('{"fit/rounds": 2}')
    assert progress(run_dir, config | {"name": "other"}) == "done"
    assert progress(run_dir, config | {"rounds": 3}) == "interrupted"
    update_config(run_dir, config | {"rounds": 3})
    assert progress(run_dir, config | {"rounds": 3}) == "interrupted"


def test_a_folder_of_other_files_is_not_even_locked(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"it holds thesis\.tex"), locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


CONSTANT = {"mode": "federated", "rounds": 4, "schedule": {"shape": "constant"}, "loss": {"margin": 0.1}, "seed": 0}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"trainer": {"devices": 8, "threads": 2, "accelerator": "gpu", "precision": "32-true"}}, True),
        ({"trainer": {"devices": 1, "threads": 1, "accelerator": "cpu", "precision": "bf16-mixed"}}, False),
        ({"engine": {"backend": "vmap", "block": 3}}, True),
        ({"data": {"root": "/elsewhere", "grey": True}}, True),
        ({"data": {"root": "faces", "grey": False}}, False),
        ({"weights": "/elsewhere/run"}, True),
        ({"fleet": {"mix": None, "profiles": "other.yaml"}}, True),
        ({"fleet": {"mix": None, "profiles": {"tiny": {"watts": 1}}}}, False),
        ({"rounds": 9}, True),
        ({"objective": "val/auroc"}, True),
        ({"seed": 1}, False),
    ],
)
def test_a_run_is_what_it_computes(change: dict[str, Any], same: bool) -> None:
    before = CONSTANT | {
        "trainer": {"devices": 1, "threads": 1, "accelerator": "cpu", "precision": "32-true"},
        "engine": {"backend": "loop", "block": None},
        "data": {"root": "faces", "grey": True},
        "weights": "runs/a",
        "fleet": {"mix": None, "profiles": "mine.yaml"},
    }
    assert (fingerprint(before, b"images") == fingerprint(before | change, b"images")) == same


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schedule": {"shape": "cosine"}}, "schedule=cosine does"),
        ({"prune": {"kind": "weights"}}, "prune=weights does"),
        ({"loss": {"classes": {"defer": 0.8}, "attributes": {}}}, "loss.defer does"),
        ({"mode": "centralised", "sampling": {"cohort": 3, "dropout": 0.0}}, "mode=centralised, which makes as many steps"),
    ],
)
def test_rounds_cannot_grow_where_something_depends_on_their_number(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    config = CONSTANT | change
    run_dir = begun(tmp_path / "run", config)
    with pytest.raises(ValueError, match=rf"rounds \(4 there, 6 now\); rounds can grow only where .* {reason}"):
        open_run_directory(run_dir, config | {"rounds": 6}, resume=True)


def test_what_a_resumed_run_differs_by_is_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = begun(tmp_path / "run", CONSTANT | {"name": "first", "resume": False, "trainer": {"threads": 1}})
    now = CONSTANT | {"name": None, "resume": True, "trainer": {"threads": 2}, "rounds": 6}
    assert open_run_directory(run_dir, now, resume=True) is None
    with caplog.at_level(logging.INFO):
        update_config(run_dir, now)
    assert "rounds (4 there, 6 now), trainer.threads (1 there, 2 now)" in caplog.text
    text = (run_dir / "config.yaml").read_text()
    for line in ("name: first", "resume: false", "threads: 2", "rounds: 6"):
        assert line in text


def test_a_folder_whose_name_is_not_utf8_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output_dir must be a name in UTF-8, got b'.*b\\xe9'"), locked(tmp_path / "b\udce9"):
        pass
    assert not list(tmp_path.iterdir())
