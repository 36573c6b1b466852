"""One round: broadcast, local training, aggregation. State goes in and comes out; a round that fails leaves the old state whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl.data.federated_data import FederatedData
from mtl.federation.feddf import Ensemble
from mtl.federation.for_each_client import Backend, CohortJob, Trained, Training
from mtl.federation.heterofl import Levels
from mtl.federation.message import message_bytes
from mtl.federation.personalise import Bank, Kept
from mtl.federation.ranks import Ranks
from mtl.federation.sampling import Draws
from mtl.federation.schedule import Schedule
from mtl.federation.server import FedAvg, RunningMean
from mtl.types import Diverged, Params


@dataclass(frozen=True)
class Setting:
    """What does not change over the rounds. frozen: by round, the parameters that rest in it: they are neither trained nor sent; levels:
    of width or architecture, None where all clients train the same model; ensemble: of the clients' models, from which the server
    learns, or None.
    """

    data: FederatedData
    training: Training
    backend: Backend
    schedule: Schedule
    sampling: Draws
    server: FedAvg
    num_rounds: int
    frozen: Callable[[int], frozenset[str]] = lambda round: frozenset()
    levels: Levels | None = None
    ensemble: Ensemble | None = None


@dataclass
class RoundLog:
    """cohort, returned: clients; losses: [2, T], mean positive and negative loss per image on the clients that train the subtask;
    trained: bool [T], the subtasks that some of them trained; finite: bool [K], whether the loss and the update of each that returned
    are, on the compute device; num_samples: images seen; bytes_up, bytes_down: sent by and to all clients of the cohort; pairs:
    [3, T, T], what `balance.compare` gives, summed over all local steps, or None.
    """

    round: int
    cohort: list[int]
    returned: list[int]
    losses: Tensor
    trained: Tensor
    finite: Tensor
    learning_rate: float
    num_samples: int
    bytes_up: int
    bytes_down: int
    pairs: Tensor | None = None


@dataclass
class State:
    """params: the global model; server: the server algorithm's own; bank: what stays on the clients."""

    params: Params
    server: Params
    bank: Bank = field(repr=False)


def run_round(setting: Setting, state: State, round: int) -> tuple[State, RoundLog]:
    """Round `round`, counted from 0. Nothing here waits for the compute device: whether all went well is in the log, for
    `check_health`.
    """
    data, bank, ranks = setting.data, state.bank, Ranks()
    levels, ensemble = setting.levels, setting.ensemble
    cohort, returned = setting.sampling.draw(data.num_clients, seed=setting.training.seed, round=round)
    rate = setting.training.algorithm.learning_rate * setting.schedule.factor(round, setting.num_rounds)
    frozen = setting.frozen(round)
    travelling = {name: value for name, value in state.params.items() if not bank.stays(name) and name not in frozen}
    sizes, assigned = [data.clients.size(client) for client in returned], data.assignment[returned]
    like = next(iter(state.params.values()))
    samples = torch.tensor([setting.training.work.num_samples(size) for size in sizes], dtype=torch.float64)
    weights = torch.tensor([setting.server.weight(size) for size in sizes], dtype=torch.float64)
    mean = RunningMean(travelling, weights, assigned, None if levels is None else levels.covered(travelling, weights, returned))
    sent_by = message_bytes if levels is None else levels.message_bytes
    tasks, weights = assigned.to(like.device), weights.to(like)
    together = setting.server.collect(travelling, len(returned))
    balance = setting.training.balance
    start = state.params if balance is None else state.params | balance.start(state.params, data.num_tasks)
    place = {client: number for number, client in enumerate(returned)}

    # Summed over the ranks: the updates, and for each client what it lost, whether it is finite, what stays with it, and its update where
    # the server compares them.
    losses = like.new_zeros(len(returned), 2, data.num_tasks)
    health = losses.new_zeros(len(returned))
    kept = Kept({name: value for name, value in start.items() if bank.stays(name)}, assigned.cpu())
    pairs = losses.new_zeros(3, data.num_tasks, data.num_tasks) if balance is not None and balance.conflict else None
    votes = None if ensemble is None else losses.new_zeros(len(ensemble.images), data.num_tasks)

    job = CohortJob(
        clients=[returned[mine] for mine in ranks.share(samples.tolist())],
        round=round,
        start=lambda clients: bank.load(clients, start),
        learning_rate=rate,
        progress=round / setting.num_rounds,
        frozen=frozen,
    )
    for trained in _each(setting.backend, job, data):
        whom = torch.tensor([place[client] for client in trained.clients])
        places = whom.to(losses.device)
        index = None if levels is None else levels.index(trained.level, losses.device)
        mean.add(trained.update, weights[places], tasks[places], index)
        losses[places] = trained.losses
        health[places] = sum(value.reshape(len(places), -1).sum(1) for value in (trained.losses, *trained.update.values()))
        kept.put(whom, trained.params)
        for name, value in together.items():
            value[places] = trained.update[name]
        if pairs is not None and trained.pairs is not None:
            pairs += trained.pairs
        if ensemble is not None and votes is not None:
            votes += ensemble.votes(trained, tasks[places])
    shared = [value for value in (pairs, votes) if value is not None]
    ranks.sum([*mean.sums.values(), losses, health, *kept.values.values(), *together.values(), *shared])

    if together and returned:
        per_image = losses.sum((1, 2)) / samples.to(losses)
        mean.replace(setting.server.combine(together, per_image, weights, seed=setting.training.seed, round=round))
    params, server = setting.server.aggregate(travelling, mean, state.server)
    if ensemble is not None and votes is not None and returned:
        with _no_autocast_cache():
            params = ensemble.distil(state.params | params, votes, tasks.sum(0), round=round, frozen=frozen)
    seen = (samples @ assigned.double()).clamp_min(1).to(losses)
    log = RoundLog(
        round=round,
        cohort=cohort,
        returned=returned,
        losses=torch.where(tasks[:, None], losses, 0).sum(0) / seen,
        trained=assigned.any(0),
        finite=health.isfinite(),
        learning_rate=rate,
        num_samples=int(samples.sum()),
        bytes_up=sent_by(travelling, data.assignment, returned),
        bytes_down=sent_by(travelling, data.assignment, cohort),
        pairs=pairs,
    )
    if kept.values:
        check_health(log)
        bank.store(returned, kept.values)
    return State(state.params | params, server, bank), log


def _each(backend: Backend, job: CohortJob, data: FederatedData) -> Iterator[Trained]:
    """What the backend yields."""
    with _no_autocast_cache():
        yield from backend(job, data)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast would keep the low-precision copy of a weight from one local step to the next."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def check_health(log: RoundLog) -> None:
    """Raises `Diverged` where the loss or the update of a client is not finite."""
    for client, good in zip(log.returned, log.finite.tolist(), strict=True):
        if not good:
            raise Diverged(
                f"the loss or the update of client {client} is not finite in round {log.round + 1}; try a lower client.learning_rate"
            )
