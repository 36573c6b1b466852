"""What a search maximises: a validation metric of the round that a run tests, never a test metric."""

import functools
import json
from typing import Any

from hydra_zen import instantiate
from omegaconf import DictConfig, OmegaConf

from mtl.base.types import NoObjective
from mtl.learning.learner import Learner
from mtl.metrics.scores import Summary
from mtl.report.runs import CHOSEN_BY, best_key
from mtl.run.rules import check_rules


def require_validation(config: DictConfig) -> None:
    """Check that a job of a search has validation images. Reads the images: once for all jobs of a process that share data and split.

    Raises:
        NoObjective: The split leaves no validation images.
        ValueError: As `check_rules`, and where the images cannot be read or split.
    """
    check_rules(config)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if not _leaves_validation(json.dumps({name: plain[name] for name in ("data", "split", "seed")})):
        raise NoObjective(f"a search needs validation images to choose by, and split leaves none; {_advice(config)}")


def check_objective(config: DictConfig, learner: Learner) -> None:
    """Raises NoObjective where `objective` is not a validation metric of this run."""
    objective = config.objective
    if objective is None:
        return
    if learner.monitor_stage != "val":
        raise NoObjective(
            f"objective must be a validation metric or null, got {objective}, and split leaves no validation images; {_advice(config)}"
        )
    choices = [f"val/{name}" for name in learner.choices()]
    if objective not in choices:
        raise NoObjective(f"objective must be null or one of {', '.join(choices)}, got {objective}")


def objective_value(config: DictConfig, summary: Summary) -> float | None:
    """The metric `objective`, or else the one that chose the round, in the chosen round; None where the run has no validation metrics."""
    metric = config.objective or summary.get(CHOSEN_BY)
    value = summary.get(best_key(str(metric)))
    return float(value) if isinstance(value, int | float) else None


@functools.cache
def _leaves_validation(options: str) -> bool:
    config = OmegaConf.create(json.loads(options))
    return len(instantiate(config.split)(instantiate(config.data), config.seed).val) > 0


def _advice(config: DictConfig) -> str:
    """Split options that leave validation images."""
    rule = str(config.split.get("_target_")).rpartition(".")[2]
    if rule in ("auto", "per_class"):
        return "say split.val=2, images of each class, or split=fractions split.val=.2"
    return "say split.val=.2"
