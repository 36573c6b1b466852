"""Fabricated run directories: the files of the contract, with numbers of a plausible size."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

Fabricate = Callable[..., Path]


def fabricate_run(
    path: Path,
    *,
    mode: str = "federated",
    seed: int = 0,
    num_tasks: int = 40,
    num_clients: int = 8,
    num_rounds: int = 80,
    images_per_task: int = 3,
    has_fleet: bool = False,
    is_exclusive: bool = True,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a whole run directory; a run of mode `local` separates its tasks worse than a federated one."""
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([seed, len(mode)])
    base = {
        "name": f"faces-{mode}",
        "mode": mode,
        "seed": seed,
        "output_dir": str(path),
        "data": {"_target_": "mtl.data.faces.OrlFaces", "size": 56},
        "federation": {"rounds": num_rounds, "local_steps": 4} if mode == "federated" else None,
        "optimizer": {"learning_rate": 0.05, "betas": [0.9, 0.999]},
    }
    OmegaConf.save(OmegaConf.create(base | (config or {})), path / "config.yaml")
    environment = {
        "commit": "3f2c1ab09d",
        "dirty": seed == 2,
        "python": "3.12.3",
        "versions": {"torch": "2.11.0", "numpy": "2.4.6"},
        "command": f"python -m mtl train experiment=faces mode={mode} seed={seed}",
        "machine": "2 CPU cores",
        "started": "2026-01-02T03:04:05",
    }
    (path / "environment.json").write_text(json.dumps(environment))

    skill = {"federated": 3.4, "centralised": 4.2, "local": 2.0}[mode]
    tasks = [f"s{index + 1}" for index in range(num_tasks)]
    hardness = np.random.default_rng(7).gamma(2.0, 0.35, num_tasks)
    identity = np.repeat(np.arange(num_tasks), images_per_task)
    targets = identity[:, None] == np.arange(num_tasks)
    if not is_exclusive:
        targets = random.random(targets.shape) < np.random.default_rng(3).uniform(0.05, 0.6, num_tasks)
        identity = np.full(len(targets), -1)
    scores = np.where(targets, 0.5 * skill - hardness, -skill) + random.normal(0, 1.2, targets.shape)
    arrays = {"scores": scores.astype(np.float32), "targets": targets, "known": np.ones_like(targets)}
    np.savez(
        path / "predictions.npz",
        tasks=np.array(tasks),
        identity=identity,
        num_exclusive=np.array(num_tasks if is_exclusive else 0),
        **arrays,
    )

    summary: dict[str, float | None] = {}
    aurocs, accuracies = [], []
    for index, task in enumerate(tasks):
        yes, no = scores[targets[:, index], index], scores[~targets[:, index], index]
        defined = len(yes) > 0 and len(no) > 0
        aurocs.append(float((yes[:, None] > no).mean()) if defined else None)
        accuracies.append(float(((yes > 0).mean() + (no <= 0).mean()) / 2) if defined else None)
        summary |= {f"test/{task}/auroc": aurocs[-1], f"test/{task}/balanced_accuracy": accuracies[-1]}
    rank1 = float((scores.argmax(1) == identity).mean()) if is_exclusive else None
    for name, values in (("auroc", aurocs), ("balanced_accuracy", accuracies)):
        known = [value for value in values if value is not None]
        summary |= {
            f"test/{name}": sum(known) / len(known) if known else None,
            f"test/worst_task_{name}": min(known, default=None),
        }
    sent = 1_634_000.0 * num_rounds if mode == "federated" else 0.0
    summary |= {
        "test/rank1": rank1,
        "fit/seconds": 95.0 + float(random.normal(0, 4)),
        "fit/samples_per_second": 2100.0,
        "fit/bytes_up": sent * num_clients,
        "fit/bytes_down": sent * num_clients,
        "fit/bytes_up_per_client": sent,
        "fit/bytes_down_per_client": sent * 1.02,
        "fit/rounds": float(num_rounds),
        "fit/best_round": float(num_rounds * 3 // 4),
    }
    if has_fleet:
        summary |= {"cost/modelled_seconds": 12.5 * num_rounds, "cost/modelled_joules_per_client": 40.0 * num_rounds}
    (path / "summary.json").write_text(json.dumps(summary))

    clients = np.arange(num_tasks) * num_clients // num_tasks
    assignment = clients == np.arange(num_clients)[:, None]
    strays = np.random.default_rng(11).random(assignment.shape) < min(0.04, 1 / num_clients)
    positives = assignment * 6 + strays
    images = positives.sum(1)
    np.savez(
        path / "federation.npz", positives=positives, negatives=images[:, None] - positives, assignment=assignment, images=images
    )

    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", "metric", "value"])
        for number in range(1, num_rounds + 1):
            positive, negative = (
                a * np.exp(-number * skill / b) + 0.02 + random.normal(0, 0.004) for a, b in ((0.6, 60), (0.35, 30))
            )
            rate = 1 - np.exp(-number * skill / 70)
            lines = {
                "train/loss": positive + negative,
                "train/positive": positive,
                "train/negative": negative,
                "train/learning_rate": 0.05,
                "fit/bytes_up": sent * num_clients * number / num_rounds,
                "fit/bytes_down": sent * num_clients * number / num_rounds,
            }
            if has_fleet:
                lines |= {"cost/modelled_seconds": 12.5 * number, "cost/modelled_joules": 40.0 * num_clients * number}
            if number % 5 == 0:
                top = rank1 if rank1 is not None else 0.8
                for stage in ("val", "monitor"):
                    noisy = {"rank1": top * rate, "auroc": 0.5 + 0.48 * rate, "worst_task_auroc": 0.4 + 0.4 * rate}
                    lines |= {f"{stage}/{name}": min(1.0, value + random.normal(0, 0.01)) for name, value in noisy.items()}
            writer.writerows([number, metric, value] for metric, value in lines.items())
    return path


@pytest.fixture(scope="session")
def fabricate() -> Fabricate:
    return fabricate_run
