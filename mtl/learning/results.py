"""The results of a run: arrays for reports and tables, and the numbers of the summary.

`data` is divided over the clients of the run, also where a learner trains on all of it in one place.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtl.base.files import write_arrays
from mtl.data.federated_data import FederatedData
from mtl.metrics.scores import Metrics, worst_clients

if TYPE_CHECKING:
    from mtl.learning.learner import Learner


MODELLED = "modelled_"


def account_key(name: str) -> str:
    """Return the metric name of an entry of the account: `cost/...` for modelled costs, else `fit/...`."""
    return f"cost/{name}" if name.startswith(MODELLED) else f"fit/{name}"


def fit_summary(learner: "Learner", data: FederatedData, rounds: int) -> Metrics:
    """Return what training took: time, samples, bytes, and the counted and modelled costs."""
    account, clients = learner.account, data.num_clients
    summary: Metrics = {account_key(name): float(value) for name, value in account.items()}
    summary["fit/samples_per_second"] = account["samples"] / account["seconds"]
    summary["fit/rounds"] = rounds
    timing = learner.round_seconds()
    if timing is not None:
        summary["fit/round_seconds"], summary["fit/overhead"] = timing
    for way in ("bytes_up", "bytes_down"):
        summary[f"fit/{way}_per_client"] = account[way] / clients
    if "modelled_seconds" in account:
        summary["cost/modelled_seconds_per_round"] = account["modelled_seconds"] / rounds
        summary["cost/modelled_joules_per_client"] = account["modelled_joules"] / clients
    return summary | {f"cost/{name}": value for name, value in learner.costs().items()}


def tested_summary(learner: "Learner", data: FederatedData) -> Metrics:
    """Return the metrics of the tested model, with that of the clients with the lowest AUROC."""
    metrics, tested = learner.test_metrics, data.num_tested
    worst = worst_clients(metrics, data.tasks[:tested], data.assignment[:, :tested])
    return {f"test/{name}": value for name, value in metrics.items()} | {"test/worst_clients_auroc": worst}


def write_federation(run_dir: Path, learner: "Learner", data: FederatedData) -> None:
    """Write `federation.npz`: the images, labels and subtasks of each client."""
    tested = data.num_tested
    assignment = data.assignment.cpu().numpy()
    source = {"source_assignment": assignment[:, tested:]} if data.num_source else {}
    write_arrays(
        run_dir / "federation.npz",
        **{name: np.array(value) for name, value in learner.client_records.items()},
        positives=data.positives[:, :tested].cpu().numpy(),
        negatives=data.negatives[:, :tested].cpu().numpy(),
        assignment=assignment[:, :tested],
        images=np.array(data.clients.sizes),
        **source,
    )


def write_predictions(run_dir: Path, learner: "Learner") -> None:
    """Write `predictions.npz`: the scores of the test images, and their labels."""
    data = learner.federated_data
    test, tested = data.split.test, data.num_tested
    assert learner.test_scores is not None
    write_arrays(
        run_dir / "predictions.npz",
        scores=learner.test_scores.numpy(),
        targets=data.targets[test, :tested].cpu().numpy(),
        known=data.known[test, :tested].cpu().numpy(),
        identity=data.identity[test].cpu().numpy(),
        num_exclusive=np.array(data.num_exclusive),
        tasks=np.array(data.tasks[:tested]),
    )


def write_conflict(run_dir: Path, learner: "Learner") -> None:
    """Write `conflict.npz` where gradients were compared.

    For each pair of tasks it has the mean cosine of their gradients, the share of steps in which they conflict, and the number of steps,
    over the rounds up to the tested one.
    """
    if learner.pairs is None:
        return
    cosines, against, count = learner.pairs.cpu().numpy()
    steps = np.maximum(count, 1)
    tasks = np.array(learner.balanced)
    write_arrays(run_dir / "conflict.npz", cosine=cosines / steps, conflicting=against / steps, steps=count, tasks=tasks)
