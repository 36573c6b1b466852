"""What one trunk for all costs: `python -m experiments.benchmarks.together JOINT ALONE...`. The last line is one JSON object.

JOINT is the run directory of `faces_together`, ALONE those of the same model trained for one kind of subtask each, the others without
weight (see `experiments/README.md`). Training steps of all take turns on one core, `--turns` times, and the medians count, times the
steps of each run. A model's parameters are those that its step moves: a model that only finds faces does without the trunk's last layer.

    parameters_ratio   of JOINT over the sum of ALONE
    step_ratio         seconds of a step, the same
    time_ratio         seconds of training, the same
    NAME_points        what JOINT is better by than the best of ALONE, in points, negative where it is worse
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mtl.base.memory import keep_freed_memory
from mtl.learning.detection import DetectionLearning
from mtl.run.build import build_data, read_config
from mtl.run.learners import build_learner

METRICS = ("rank1", "attributes_auroc", "attributes_balanced_accuracy", "ap50")


class Steps:
    """The steps of a run's first round, over and over."""

    def __init__(self, run_dir: Path) -> None:
        config = read_config(run_dir)
        learner, _ = build_learner(config, build_data(config), run_dir)
        if not isinstance(learner, DetectionLearning):
            raise SystemExit(f"runs must have mode=detection, got {config.mode} in {run_dir}")
        learner.train()
        learner.on_train_epoch_start()
        self.learner, self.name, self.at = learner, run_dir.name, 0
        self.steps, self.number = config.work.steps, config.rounds * config.work.steps
        self.seconds: list[float] = []
        self.metrics = read_metrics(run_dir)

    def go(self) -> float:
        """One step; returns its seconds."""
        start = time.perf_counter()
        self.learner.training_step(torch.tensor(self.at), self.at)
        self.at = (self.at + 1) % self.steps
        return time.perf_counter() - start

    @property
    def parameters(self) -> int:
        """How many have a gradient in the first step."""
        learner = self.learner
        grads = learner.step.gradients(learner.moving, learner.memory, learner.batch_of(0), {}).grads
        return sum(value.numel() for value in grads.values() if bool(value.any()))

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)


def read_metrics(run_dir: Path) -> dict[str, float]:
    """Those of the test images."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return {name: summary[f"test/{name}"] for name in METRICS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.together", description="What one trunk for all costs."
    )
    parser.add_argument("joint", type=Path, metavar="JOINT")
    parser.add_argument("alone", type=Path, nargs="+", metavar="ALONE")
    parser.add_argument("--turns", type=int, default=15)
    asked = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    joint, *alone = runs = [Steps(path) for path in (asked.joint, *asked.alone)]
    for turn in range(asked.turns + 1):
        for run in runs:
            seconds = run.go()
            if turn:
                run.seconds.append(seconds)
    for run in runs:
        told = "  ".join(f"{name} {100 * value:.1f}" for name, value in run.metrics.items())
        print(
            f"{run.name:12} {run.parameters:9,} parameters  {1000 * run.step_seconds:5.0f} ms a step  {run.number} steps  {told}"
        )
    results = {
        "parameters_ratio": joint.parameters / sum(run.parameters for run in alone),
        "step_ratio": joint.step_seconds / sum(run.step_seconds for run in alone),
        "time_ratio": joint.number * joint.step_seconds / sum(run.number * run.step_seconds for run in alone),
    }
    for name, value in joint.metrics.items():
        results[f"{name}_points"] = 100 * (value - max(run.metrics[name] for run in alone))
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
