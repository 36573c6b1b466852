"""What README.md says of speed, measured: `python -m experiments.benchmarks.claims`. The last line is one JSON object of ratios.

Each command of README.md runs beside the one that it is compared with, in turns, each in a process of its own through the Trainer; the
medians of `--repeats` turns count, since the speed of a shared machine drifts. A round lasts from its start to the start of the next.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from experiments.benchmarks.rounds import medians
from mtl.run.config import compose, register
from mtl.run.named_experiments import experiments_folder
from mtl.run.train import train

COMMON = ["tracking.wandb=disabled", "write_report=false", "trainer.accelerator=cpu", "checkpoint_every=1000000"]


def run(rounds: int, *overrides: str) -> float:
    """Seconds of a round, in a process of its own."""
    words = [*COMMON, *overrides, f"rounds={rounds}", f"evaluate_every={rounds}"]
    done = subprocess.run([sys.executable, "-m", __spec__.name, "--task", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def run_here(words: list[str]) -> None:
    register(experiments_folder())
    with tempfile.TemporaryDirectory() as folder:
        print(train(compose(words), Path(folder) / "run")["fit/round_seconds"])


def sides(rounds: int, *overrides: str, **each: str) -> dict[str, Callable[[], float]]:
    """The runs of a comparison by name: what is the same, and the one override that differs."""
    return {name: lambda word=word: run(rounds, *overrides, word) for name, word in each.items()}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        run_here(options.task)
        return
    figures: dict[str, float] = {}

    def measure(title: str, all_sides: dict[str, Callable[[], float]], first: str) -> None:
        """The time of `first` over that of each of the others."""
        print(f"{title}:", flush=True)
        times = medians(options.repeats, **all_sides)
        figures.update({f"{title}_{name}": times[first] / value for name, value in times.items() if name != first})

    backends = {name: f"engine.backend={name}" for name in ("loop", "vmap", "compiled")}
    measure("synthetic_loop_vs", sides(20, "+experiment=synthetic", "keep=heads", **backends), "loop")
    many = ("+experiment=synthetic", "keep=heads", "sampling.cohort=100", "data.num_clients=100")
    even = ("data.samples_per_client=100",)
    measure("hundred_even_clients_loop_vs", sides(4, *many, *even, **backends), "loop")
    measure("demo_one_process_vs", sides(4, "engine.backend=loop", one="trainer.devices=1", two="trainer.devices=2"), "one")
    balanced = sides(4, "mode=centralised", sum="balancer=equal", cagrad="balancer=cagrad")
    measure("plain_sum_vs", balanced, "sum")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
