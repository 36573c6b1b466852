"""The studies of the package: every job is a valid run, and the quick forms train."""

import os
from pathlib import Path

import pytest

from mtl.cli.main import main
from mtl.studies.files import SHIPPED
from mtl.studies.study import Study
from tests.composing import compose

NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_job_composes_and_keeps_the_rules(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.studies.jobs.compose", lambda words, experiments: compose(words))
    study = Study(name, folder=tmp_path)
    assert {source.is_done for source in study.grid.sources()} <= {False}
    jobs = study.jobs()
    assert {job.state for job in jobs} == {"new"}
    assert len(jobs) == sum(len(row.seeds) for row in study.definition.rows)
    assert study.grid.sweeps(jobs)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_short_and_begins_with_what_it_is(name: str) -> None:
    lines = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 160


def test_every_seed_of_a_row_is_a_run_of_its_own(tmp_path: Path) -> None:
    grid = Study("orl", folder=tmp_path).grid
    (sweep, *_) = grid.sweeps(grid.jobs())
    assert sweep[:2] == ["+experiment=orl", "seed=0,1,2,3,4,5,6,7,8,9"]


def train_quick(name: str, folder: Path) -> None:
    data = os.environ.get("MTL_TEST_DATA", "data")
    lacking = Study(name, quick=True, folder=folder, data=data).missing_data()
    if lacking:
        pytest.skip(f"MTL_TEST_DATA must name a folder with the data: {lacking[0]}")
    words = ["--quick", "--data", data, "--runs", str(folder), "tracking.wandb=disabled", "write_report=false"]
    assert main(["study", name, *words, "trainer.accelerator=cpu"]) == 0
    table = (folder / "table" / "table.md").read_text(encoding="utf-8")
    assert table.startswith("**QUICK")
    assert "Incomplete" not in table


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_quick_form_trains(name: str, tmp_path: Path) -> None:
    train_quick(name, tmp_path)
