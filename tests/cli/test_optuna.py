"""A search by Optuna through Hydra's sweeper, which the extra `sweep` installs."""

import json
from pathlib import Path

import pytest
import yaml

from mtl.cli.main import main
from tests.cli.test_sweep import outcomes, sweep

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra `sweep`: hydra-optuna-sweeper")
pytestmark = [
    # The sweeper speaks to Optuna as to its version 2.
    pytest.mark.filterwarnings("ignore:.*has been deprecated in v[34]:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Deprecated API features detected"),  # of SQLAlchemy 1, in Optuna 2
]
OPTUNA = [
    *("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"),
    *("hydra.sweeper.sampler.seed=1", "objective=val/auroc"),
]


def best(folder: Path) -> float:
    return float(yaml.safe_load((folder / "optimization_results.yaml").read_text())["best_value"])


def test_a_search_maximises_the_validation_metric_and_keeps_the_rules_of_sweeps(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "search"
    words = sweep(class_folders, folder, *OPTUNA, "client.learning_rate=interval(.001,.2)", "loss=choice(bce,focal)")
    assert main(words) == 0
    assert outcomes(capfd.readouterr().out) == ["done"] * 4
    runs = [path.parent for path in folder.glob("*/summary.json")]
    assert len(runs) == 4
    assert all("learning_rate=0." in run.name and "loss=" in run.name and (run / "log.txt").exists() for run in runs)
    assert best(folder) == max(json.loads((run / "summary.json").read_text())["val/best_auroc"] for run in runs)
    assert main(words) == 0  # the same seed proposes the same trials
    assert outcomes(capfd.readouterr().out) == ["already done"] * 4


def test_a_search_goes_on_after_a_failed_job(class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "search"
    assert main(sweep(class_folders, folder, *OPTUNA, "client.learning_rate=choice(-1,.05)")) == 1
    assert set(outcomes(capfd.readouterr().out)) == {"done", "already done", "failed"}
    (run,) = folder.glob("*/summary.json")
    assert best(folder) == json.loads(run.read_text())["val/best_auroc"]
