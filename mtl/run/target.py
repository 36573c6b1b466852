"""`target_accuracy`: when a run first reached an accuracy on its validation images."""

from pathlib import Path

from omegaconf import DictConfig

from mtl.learning.learner import Learner
from mtl.metrics.scores import Metrics
from mtl.report.run_files import read_metrics
from mtl.report.target import costs_to_target


def check_target(config: DictConfig, learner: Learner) -> None:
    """Raise ValueError where `target_accuracy` is set and there are no validation images."""
    if config.target_accuracy is not None and learner.monitor_stage != "val":
        raise ValueError(
            f"target_accuracy={config.target_accuracy} is measured on validation images, and split leaves none; the test images are for "
            "the report alone"
        )


def target_summary(config: DictConfig, run_dir: Path, learner: Learner) -> Metrics:
    """Return the round in which the metric that chooses the round first reached the target, and its modelled costs until then."""
    if config.target_accuracy is None:
        return {}
    curves, _ = read_metrics(run_dir / "metrics.csv")
    return costs_to_target(curves, learner.chosen_by, config.target_accuracy)
