"""What federated algorithms cost a client: `python -m experiments.benchmarks.algorithms`. The last line is one JSON object.

    loop, vmap    seconds of a local step of each algorithm of the group `algorithm` over those of FedAvg, one client after the other and
                  stacked

Four clients with random pictures of 32 x 32, ten subtasks, LeNet, SGD with momentum, on one core. What is timed is the local training of a
cohort: loading what the clients keep, their steps, and what they send; aggregation and the server's step are not in it. The state is that
after one round, so that what clients keep is not zero. All algorithms train in one process and take turns, `--turns` times, and the
medians count.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import OmegaConf

from mtl.base.memory import keep_freed_memory
from mtl.federation.ranks import Ranks
from mtl.federation.round import State, run_round
from mtl.learning.federated import FederatedLearning
from mtl.run.build import build_data
from mtl.run.config import compose
from mtl.run.learners import build_learner
from mtl.run.members import WHOLE

CLIENTS, BASELINE = 4, "fedavg"
DATA = {"_target_": "experiments.benchmarks.random_data.pictures", "num_train": 1000, "num_test": 20, "shape": [3, 32, 32]}
WORDS = [
    "split=official",
    "partition=iid",
    f"partition.num_clients={CLIENTS}",
    "assignment=all",
    "trunk=lenet",
    "heads=linear",
    "loss=bce",
    "augmentation=none",
    "mirror=false",
    "schedule=constant",
    "client.learning_rate=.001",
]


def cohort(algorithm: str, backend: str, steps: int, folder: Path) -> Callable[[], None]:
    """Return the local training of all clients in the second round."""
    config = compose([*WORDS, f"algorithm={algorithm}", f"engine.backend={backend}", f"work.steps={steps}"])
    config.data = OmegaConf.create(DATA)
    learner, _ = build_learner(config, build_data(config), folder)
    assert isinstance(learner, FederatedLearning)
    federation, ranks = learner.federation, Ranks()
    state, _ = run_round(federation, State(federation.server.init(learner.model.params(), federation.layout), learner.bank), 0)
    orders = federation.orders(state, federation.population.draw(federation.data, 1))

    def train() -> None:
        for _ in federation.train(orders, state.bank, ranks):
            pass

    return train


def ratios(backend: str, steps: int, turns: int, folder: Path) -> dict[str, float]:
    """Return the seconds of each algorithm over those of FedAvg."""
    sides = {name: cohort(name, backend, steps, folder / f"{backend}_{name}") for name in WHOLE["algorithm"]}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, train in sides.items():
            start = time.perf_counter()
            train()
            if turn:  # the first does not count
                seconds[name].append((time.perf_counter() - start) / (CLIENTS * steps))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"  {backend} {name}: {1e3 * value:.3f} ms a step, {value / medians[BASELINE]:.3f} of {BASELINE}", flush=True)
    return {name: round(value / medians[BASELINE], 3) for name, value in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="local steps of a client")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        found = {backend: ratios(backend, options.steps, options.turns, Path(folder)) for backend in ("loop", "vmap")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
