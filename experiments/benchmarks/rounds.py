"""How fast rounds are: `python -m experiments.benchmarks.rounds [--pfl PYTHON]`. The last line is one JSON object.

Every figure is a ratio of runs made one after the other, each in a process of its own through the Trainer, with logging; the runs of a
ratio alternate `--repeats` times, and their medians count, since the speed of a shared machine drifts. A round lasts from its start
to the start of the next; evaluation is left out on both sides. With `--pfl`, the Python of an environment that has pfl-research:
`pip install "pfl[pytorch]==0.6.0" torch==2.13.0` under Python < 3.13.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mtl.run.build import build_data
from mtl.run.config import compose
from mtl.run.train import train

RANDOM = "experiments.benchmarks.random_data.pictures"
COMMON = [
    "subtasks=one_vs_rest",
    "split=official",
    "partition=iid",
    "assignment=all",
    "heads=linear",
    "loss=bce",
    "augmentation=none",
    "mirror=false",
    "schedule=constant",
    "work=epochs",
    "work.batch_size=10",
    "server.weighting=clients",
    "client.momentum=0",
    "client.weight_decay=0",
    "client.head_scale=1",
    "tracking.wandb=offline",
    "tracking.per_task=false",
    "write_report=false",
    "trainer.accelerator=cpu",
    "checkpoint_every=1000000",
]
# 1,000 users of 50 images, 20 a round: pfl-research's schedule at a cohort that is quick enough on two cores.
CIFAR = ["trunk=classic_cnn", "client.learning_rate=.1", "sampling=cohort", "sampling.cohort=20", "partition.num_clients=1000"]
LOGISTIC = ["trunk=flat", "client.learning_rate=.1", "partition.num_clients=100", "work.epochs=20"]
CIFAR_DATA = {"num_train": 50_000, "num_test": 20, "shape": [3, 32, 32]}
LOGISTIC_DATA = {"num_train": 10_000, "num_test": 20, "shape": [60, 1, 1], "floats": True}


def run(rounds: int, data: dict[str, Any], *overrides: str) -> dict[str, float]:
    """A run's timing, in a process of its own."""
    task = json.dumps({"rounds": rounds, "data": data, "overrides": [*COMMON, *overrides]})
    done = subprocess.run([sys.executable, "-m", __spec__.name, "--task", task], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_here(task: str) -> None:
    told = json.loads(task)
    config = compose([*told["overrides"], f"rounds={told['rounds']}", f"evaluate_every={told['rounds']}"])
    data = told["data"]
    config.data = OmegaConf.create({"_target_": RANDOM, **data} if "_target_" not in data else data)
    with tempfile.TemporaryDirectory() as folder:
        summary = train(config, Path(folder) / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"round": summary["fit/round_seconds"], "overhead": summary["fit/overhead"], "peak_bytes": peak}))


def pfl(python: str, kind: str, rounds: int, cohort: int, users: int) -> float:
    """Seconds of a round of pfl-research."""
    script = Path(__file__).with_name("pfl_rounds.py")
    words = [python, str(script), kind, f"--rounds={rounds}", f"--cohort={cohort}", f"--users={users}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tempfile.gettempdir())
    return float(done.stdout.splitlines()[-1])


def medians(repeats: int, **sides: Callable[[], float]) -> dict[str, float]:
    """Each side's median over turns in which all have their go."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(side())
            print(f"  {name}: {times[name][-1]:.4f} s a round", flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


def cifar(repeats: int, python: str | None, figures: dict[str, float]) -> None:
    """The CIFAR network: against pfl, against centralised training, and what the Trainer and logging take."""
    cores = os.cpu_count() or 1
    loop = ["engine.backend=loop", *CIFAR]
    overheads = []

    def ours(*overrides: str, rounds: int = 8) -> float:
        result = run(rounds, CIFAR_DATA, *loop, *overrides)
        overheads.append(result["overhead"])
        return result["round"]

    sides: dict[str, Callable[[], float]] = {
        "float32": lambda: ours(f"trainer.devices={cores}"),
        "one process": ours,
        "centralised": lambda: run(8, CIFAR_DATA, "mode=centralised", *CIFAR)["round"],
    }
    if python:
        sides["pfl"] = lambda: pfl(python, "cifar10", 6, 20, 1000)
    times = medians(repeats, **sides)
    # A processor without bfloat16 arithmetic takes many times as long: once, and few rounds.
    times |= medians(1, bf16=lambda: ours(f"trainer.devices={cores}", "trainer.precision=bf16-mixed", rounds=3))
    if python:
        figures["vs_pfl_float32"] = times["pfl"] / times["float32"]
        figures["vs_pfl_bf16"] = times["pfl"] / times["bf16"]
    figures["vs_central"] = times["one process"] / times["centralised"]
    figures["overhead"] = statistics.median(overheads)
    print(f"  ours {1000 / times['float32']:.0f} samples a second, in bf16 {1000 / times['bf16']:.0f}")


def logistic(repeats: int, python: str | None, figures: dict[str, float]) -> None:
    """Logistic regression on 100 clients of 100 samples, 20 epochs of batch 10."""
    sides: dict[str, Callable[[], float]] = {
        "stacked": lambda: run(12, LOGISTIC_DATA, "engine.backend=compiled", *LOGISTIC)["round"],
        "stacked, eager": lambda: run(6, LOGISTIC_DATA, "engine.backend=vmap", *LOGISTIC)["round"],
        "loop": lambda: run(3, LOGISTIC_DATA, "engine.backend=loop", *LOGISTIC)["round"],
    }
    if python:
        sides["pfl"] = lambda: pfl(python, "logistic", 3, 100, 100)
    times = medians(repeats, **sides)
    figures["stacked_vs_loop"] = times["loop"] / times["stacked"]
    figures["stacked_eager_vs_loop"] = times["loop"] / times["stacked, eager"]
    if python:
        figures["stacked_vs_pfl"] = times["pfl"] / times["stacked"]
    print(f"  {100 * 2000 / times['stacked']:.0f} samples a second")


def tail(repeats: int, python: str | None, figures: dict[str, float]) -> None:
    """The same on sizes with a heavy tail. The stacked cohort can take no fewer steps one after the other than its longest client, so
    its gain over the loop is bounded by all steps over those, as long as a stacked step costs no less than a client's.
    """
    data = {"_target_": "mtl.data.synthetic.synthetic", "num_clients": 100}
    config = [
        "partition=by_class",
        "partition_by=owner",
        "split=fractions",
        "split.val=0",
        "split.test=.05",
        *(word for word in LOGISTIC if "num_clients" not in word),
        "partition.num_clients=100",
    ]
    composed = compose([*COMMON, *config])
    composed.data = OmegaConf.create(data)
    steps = [20 * -(-size // 10) for size in build_data(composed).clients.sizes]
    bound = sum(steps) / max(steps)
    times = medians(
        repeats,
        stacked=lambda: run(4, data, "engine.backend=compiled", *config)["round"],
        loop=lambda: run(2, data, "engine.backend=loop", *config)["round"],
    )
    gain = times["loop"] / times["stacked"]
    figures["stacked_tail"] = gain / bound
    print(f"  {sum(steps)} steps, the longest client {max(steps)}: {gain:.1f} times the loop, of a bound of {bound:.1f}")


def many_clients(repeats: int, python: str | None, figures: dict[str, float]) -> None:
    """Personal heads, 50 clients a round of ten samples each, out of 100,000 or 1,000."""

    def out_of(count: int) -> dict[str, float]:
        data = {**LOGISTIC_DATA, "num_train": 10 * count}
        words = ["keep=heads", "sampling=cohort", "sampling.cohort=50", f"partition.num_clients={count}", "work.epochs=5"]
        return run(150, data, "engine.backend=vmap", "trunk=flat", "client.learning_rate=.1", *words)

    peaks: dict[int, list[float]] = {1_000: [], 100_000: []}

    def side(count: int) -> float:
        result = out_of(count)
        peaks[count].append(result["peak_bytes"])
        return result["round"]

    times = medians(repeats, few=lambda: side(1_000), many=lambda: side(100_000))
    figures["clients_100k_vs_1k"] = times["many"] / times["few"]
    for count, values in peaks.items():
        figures[f"peak_mb_{count // 1000}k"] = statistics.median(values) / 1e6


PARTS = {"cifar": cifar, "logistic": logistic, "tail": tail, "many_clients": many_clients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all by default")
    parser.add_argument("--pfl", metavar="PYTHON", help="the Python of an environment with pfl-research")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        run_here(options.task)
        return
    figures: dict[str, float] = {}
    for name in options.parts or PARTS:
        print(f"{name}: {(PARTS[name].__doc__ or '').partition(chr(10))[0]}", flush=True)
        PARTS[name](options.repeats, options.pfl, figures)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
