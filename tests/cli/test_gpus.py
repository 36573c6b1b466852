"""One GPU a job: which GPU a process takes. No GPU is needed, as nothing is computed on it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtl.cli import gpus
from mtl.cli.main import main
from tests.cli.test_sweep import JOBLIB, sweep


@pytest.fixture
def other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Process]":
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(gpus.VISIBLE, "3,5,GPU-8f")
    process = Process(monkeypatch)
    yield process
    process.close()


class Process:
    """Makes this process one that has not taken a GPU yet; a lock is of an open file, so what it took before stays taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.earlier = monkeypatch, list[dict[str, int | None]]()

    def start(self) -> None:
        self.earlier.append({})
        self.monkeypatch.setattr(gpus, "TAKEN", self.earlier[-1])

    def close(self) -> None:
        for taken in self.earlier:
            for file in taken.values():
                if file is not None:
                    os.close(file)
            taken.clear()

    def takes(self, job: int, visible: list[str]) -> str:
        self.start()
        gpus.take_gpu(visible, job)
        return os.environ[gpus.VISIBLE]


def test_processes_take_the_gpu_of_their_job_and_never_the_same_while_others_are_free(other_process: Process) -> None:
    visible = gpus.visible_gpus()
    assert visible == ["3", "5", "GPU-8f"]
    assert other_process.takes(1, visible) == "5"
    gpus.take_gpu(visible, 3)  # a later job of the same process
    assert os.environ[gpus.VISIBLE] == "5"
    assert other_process.takes(4, visible) == "GPU-8f"
    assert other_process.takes(0, visible) == "3"
    assert other_process.takes(2, visible) == "GPU-8f"  # shared, as none is free
    last = other_process.earlier.pop()
    other_process.close()
    other_process.earlier.append(last)
    gpus.take_gpu(visible, 3)  # a later job of that process, when others have left: CUDA cannot change to another GPU
    assert os.environ[gpus.VISIBLE] == "GPU-8f"


def test_without_gpus_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "")
    with pytest.raises(ValueError, match="--gpu-per-job gives each job a GPU, and none is visible"):
        gpus.visible_gpus()


def test_a_job_says_its_gpu_and_several_devices_are_refused(
    other_process: Process, class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grid"
    words = sweep(class_folders, folder, "--gpu-per-job", "seed=0")
    assert main([*words, "trainer.devices=2"]) == 2
    assert "--gpu-per-job gives each job one GPU: trainer.devices must be 1, got 2" in capfd.readouterr().err
    other_process.start()
    assert main(words) == 0
    assert "job 0 trains on GPU 3" in next(folder.glob("*/log.txt")).read_text()


@pytest.mark.slow
def test_two_processes_of_joblib_take_two_gpus(other_process: Process, class_folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    other_process.monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert main(sweep(class_folders, folder, "--gpu-per-job", *JOBLIB, "seed=0,1", "rounds=200")) == 0
    logs = [path.read_text() for path in sorted(folder.glob("*/log.txt"))]
    assert sorted(log.partition("trains on GPU ")[2].split()[0] for log in logs) == ["3", "5"]
