"""Sweepers that choose the next jobs by what the earlier ones return get validation metrics, and never test metrics."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from mtl.cli.main import main
from tests.cli.test_cli import QUICK, words

RETURNED: list[float | None] = []


def recording() -> type:
    """A sweeper that goes through all combinations, as Hydra's own, and keeps what the jobs return, as one that optimises does."""
    Plugins.instance()  # loads the modules of Hydra's plugins anew, so that a class from before is another one
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    class Recording(BasicSweeper):
        def sweep(self, arguments: list[str]) -> Any:
            batches = super().sweep(arguments)
            RETURNED.extend(job.return_value for batch in batches for job in batch)
            return batches

    # Hydra takes plugins from this package alone.
    Recording.__module__, Recording.__qualname__ = "hydra_plugins.recording", "Recording"
    return Recording


@pytest.fixture(autouse=True)
def recording_sweeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    RETURNED.clear()
    sweeper = recording()
    module = ModuleType(sweeper.__module__)
    module.Recording = sweeper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    Plugins.instance().register(sweeper)
    node = {"_target_": "hydra_plugins.recording.Recording", "max_batch_size": None, "params": None}
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="recording", node=node, provider="test")
    yield
    store.repo["hydra"]["sweeper"].pop("recording.yaml")


def search(root: Path, folder: Path, *more: str) -> int:
    return main(words(root, folder, "-m", "hydra/sweeper=recording", "rounds=2", "evaluate_every=1", *QUICK, *more))


def of(folder: Path, words: str) -> Path:
    """The run directory whose name has these words."""
    (run_dir,) = (path for path in folder.iterdir() if words in path.name)
    return run_dir


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ([], "val/best_rank1"),
        (["objective=val/auroc"], "val/best_auroc"),
        (["best_by=balanced_accuracy"], "val/best_balanced_accuracy"),
        (["best_by=balanced_accuracy", "objective=val/rank1"], "val/best_rank1"),
    ],
)
def test_a_search_gets_the_validation_metric_of_the_tested_round(
    class_folders: Path, tmp_path: Path, more: list[str], key: str
) -> None:
    assert search(class_folders, tmp_path / "search", "client.learning_rate=.001,.05", *more) == 0
    assert [summary_of(of(tmp_path / "search", f"learning_rate={rate}"))[key] for rate in ("0.001", "0.05")] == RETURNED


def test_a_failed_job_of_a_search_is_nan_and_the_others_go_on(class_folders: Path, tmp_path: Path) -> None:
    assert search(class_folders, tmp_path / "search", "client.learning_rate=-1,.05") == 1
    assert math.isnan(RETURNED[0] or 0)
    assert RETURNED[1] == summary_of(of(tmp_path / "search", "learning_rate=0.05"))["val/best_rank1"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["split.val=0"], "a search needs validation images to choose by, and split leaves none; say split.val=2"),
        (["objective=test/rank1"], "objective must be null or one of val/rank1, val/auroc, "),
        (["objective=val/rank1", "split.val=0"], "split leaves none; say split.val=2"),
    ],
)
def test_a_search_that_cannot_choose_by_validation_ends_before_its_first_job_trains(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert search(class_folders, tmp_path / "search", "seed=0,1", *more) == 2
    printed = capfd.readouterr().err
    assert printed.count("mtl: error: ") == 1
    assert message in printed
    assert "Traceback" not in printed
    assert [path.name for path in (tmp_path / "search").iterdir()] == ["multirun.yaml"]
    assert RETURNED == []


def test_a_sweep_that_does_not_optimise_needs_no_validation_images(class_folders: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    assert main(words(class_folders, sweep, "-m", "seed=0,1", "rounds=1", "split.val=0", *QUICK)) == 0
    assert [summary_of(of(sweep, f"seed={number}"))["fit/chosen_by"] for number in "01"] == [None, None]
