"""The sweeps of `experiments/sweeps`, as W&B's agent starts their runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from mtl.cli.words import check_booleans, readable, split_flags
from mtl.run.config import compose
from mtl.run.rules import check_rules
from tests.cli.test_cli import QUICK, words

FOLDER = Path(__file__).parents[2] / "experiments" / "sweeps"


def agent_words(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The words after `mtl train` that `wandb agent` starts a run with, as its `_command_run` puts them together."""
    made = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    made |= {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    command = [part for word in create_sweep_command(list(sweep["command"])) for part in made.get(word[2:-1], [word])]
    assert command[:3] == ["/usr/bin/env", "mtl", "train"]
    return command[3:]


def config_of(words: list[str]) -> DictConfig:
    """What `mtl train WORDS` composes and checks."""
    flags, words = split_flags(words)
    assert flags == []
    words = readable(words)
    config = compose(words)
    check_booleans(words, config)
    check_rules(config)
    return config


def ends(parameter: dict[str, Any]) -> tuple[Any, Any]:
    """The first and the last value that a parameter may have."""
    values = parameter.get("values") or [
        parameter.get("value", parameter.get("min")),
        parameter.get("value", parameter.get("max")),
    ]
    return values[0], values[-1]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_starts_runs_that_can_be_composed(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"]["name"].startswith("val/")
    assert sweep["metric"]["goal"] == "maximize"
    for end in (0, 1):
        values = {name: ends(parameter)[end] for name, parameter in sweep["parameters"].items()}
        config = config_of(agent_words(sweep, values))
        for name, value in values.items():
            if "." in name:
                group, option = name.split(".")
                assert config[group][option] == pytest.approx(value)


def test_values_are_read_as_the_agent_writes_them() -> None:
    sweep = yaml.safe_load((FOLDER / "losses.yaml").read_text())
    written = {"client.learning_rate": 1e-05, "mirror": False, "name": "two words", "data.image_size": [24, 16], "rounds": 3}
    config = config_of(agent_words(sweep, {"loss": "bce", "balancer": "uw", **written}))
    assert (config.client.learning_rate, config.mirror, config.name, config.rounds) == (1e-05, False, "two words", 3)
    assert list(config.data.image_size) == [24, 16]


@pytest.mark.slow
def test_wandb_records_a_run_of_an_agent_under_its_id(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agent123")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    arguments = words(class_folders, tmp_path / "run", "tracking.wandb=offline", "rounds=1", *QUICK)
    subprocess.run([sys.executable, "-m", "mtl", *arguments], check=True, capture_output=True)
    assert json.loads((tmp_path / "run" / "wandb.json").read_text()) == {"id": "agent123"}
    assert [path.name.rpartition("-")[2] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")] == ["agent123"]
