"""Jobs of a sweep in processes of submitit, as on a cluster with Slurm."""

from pathlib import Path

import pytest

from mtl.cli.main import main
from tests.cli.test_sweep import outcomes, runs, sweep


@pytest.mark.slow
def test_submitit_runs_the_jobs_by_the_rules_of_sweeps(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra `sweep`: hydra-submitit-launcher")
    folder = tmp_path / "grid"
    words = sweep(
        class_folders, folder, "hydra/launcher=submitit_local", "trainer.threads=1", f"data.root=/nowhere,{class_folders}"
    )
    assert main(words) == 1
    assert outcomes(capfd.readouterr().out) == ["failed", "done"]
    assert len(runs(folder)) == 1
    assert len(list(folder.glob("*/log.txt"))) == 2
    assert main(words) == 1
    assert outcomes(capfd.readouterr().out) == ["failed", "already done"]
