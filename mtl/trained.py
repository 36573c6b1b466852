"""What a run left behind, from its run directory alone: its configuration and its model as trained."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from mtl.learning.checkpoints import read_checkpoint
from mtl.models.cnn import ImageShape
from mtl.models.hard_sharing import HardSharing
from mtl.models.weights import CHECKPOINTS
from mtl.train import build_model


@dataclass(frozen=True)
class TrainedRun:
    """model: in evaluation mode, on the CPU; checkpoint: the file it was read from; round: after how many it was written."""

    config: DictConfig
    model: HardSharing
    image_shape: ImageShape
    tasks: tuple[str, ...]
    checkpoint: Path
    round: int


def load_run(run_dir: Path) -> TrainedRun:
    """The best round of the run where it has chosen one, else its last. Raises ValueError where there is no run, or no model in it that
    is the same for all clients.
    """
    config = _read_config(run_dir)
    found = [run_dir / name for name in CHECKPOINTS if (run_dir / name).is_file()]
    if not found:
        raise ValueError(f"run directory must hold {' or '.join(CHECKPOINTS)}, got {run_dir} with neither")
    checkpoint = read_checkpoint(found[0])
    if any(name.startswith("trunk.") for name in checkpoint.get("bank", {})):
        raise ValueError(f"run {run_dir} must have one trunk for all, and in it each client keeps its own")
    channels, height, width = checkpoint["image_shape"]
    tasks = tuple(checkpoint["tasks"])
    model = untrained(config, (channels, height, width), tasks)
    state = checkpoint["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    return TrainedRun(config, model.eval(), (channels, height, width), tasks, found[0], int(checkpoint["epoch"]) + 1)


def untrained(config: DictConfig, image_shape: ImageShape, tasks: tuple[str, ...]) -> HardSharing:
    """The model as the run's seed draws it, without the weights it may have started from."""
    config = config.copy()
    config.weights = None
    return build_model(config, image_shape, tasks)


def _read_config(run_dir: Path) -> DictConfig:
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise ValueError(f"run directory must hold config.yaml, got {run_dir} without one")
    try:
        config = OmegaConf.load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{file} is damaged: expected the configuration of a run")
    return config
