"""What a sweep costs besides training: `python -m experiments.benchmarks.sweep`. The last line is one JSON object.

A few short runs are trained by `mtl train -m`, copied under other seeds, and a report is written over all copies, as
`mtl report` does it. The overhead of a run is what a further job adds to the time of a sweep, less its own seconds of training.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

WORDS = [
    *(
        "+experiment=synthetic",
        "rounds=20",
        "evaluate_every=5",
        "engine.backend=vmap",
        "trainer.accelerator=cpu",
        "trainer.threads=1",
    ),
    "tracking.wandb=offline",
]
RATES = (0.01, 0.03, 0.1, 0.3)  # the groups of the report


def sweep(folder: Path, seeds: int, *, rates: Sequence[float] = RATES[:1]) -> tuple[float, list[Path]]:
    """Train a sweep; return its seconds and the run directories."""
    swept = [f"seed=range({seeds})", f"client.learning_rate={','.join(map(str, rates))}", f"output_dir={folder}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mtl", "train", "-m", *WORDS, *swept], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, sorted(path.parent for path in folder.glob("*/summary.json"))


def copy_runs(runs: Sequence[Path], folder: Path, count: int) -> None:
    """Copy the runs in turn, each copy with a seed of its own."""
    for number in range(count):
        source = runs[number % len(runs)]
        copy = folder / f"run{number:04d}"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("wandb", "figures", "report.html", "checkpoints"))
        config = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))
        config["seed"] = number // len(runs)
        (copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=6, help="jobs of the longer sweep that the overhead is measured on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, runs = sweep(folder / "grid", 1, rates=RATES)
        copy_runs(runs, folder / "copies", options.runs)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mtl", "report", folder / "copies"], check=True, stdout=subprocess.DEVNULL)
        report = time.perf_counter() - start
        short, _ = sweep(folder / "short", 1)
        long, runs = sweep(folder / "long", options.seeds)
        summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in runs]
        training = statistics.fmean(summary["fit/seconds"] for summary in summaries)
        overhead = (long - short) / (options.seeds - 1) - training
    print(f"a job trains for {training:.2f} s and adds {overhead:.2f} s to that")
    print(json.dumps({f"report_seconds_{options.runs}_runs": round(report, 2), "overhead_seconds_per_run": round(overhead, 3)}))


if __name__ == "__main__":
    main()
