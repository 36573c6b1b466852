"""One round: broadcast, local training, aggregation. State goes in and comes out; a round that fails leaves the old state whole."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl import tree
from mtl.data.client_batches import LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.federation.for_each_client import Backend, ClientJob
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.personalise import Bank
from mtl.federation.sampling import Sampling
from mtl.federation.schedule import Schedule
from mtl.federation.server import FedAvg, RunningMean
from mtl.models.hard_sharing import is_head
from mtl.types import Diverged, Params


@dataclass(frozen=True)
class Setting:
    """What does not change over the rounds."""

    data: FederatedData
    backend: Backend
    client: LocalSGD
    work: LocalWork
    schedule: Schedule
    sampling: Sampling
    server: FedAvg
    num_rounds: int
    seed: int


@dataclass
class RoundLog:
    """cohort, returned: clients; positive, negative: [T], mean loss per image on the clients that train the subtask;
    trained: bool [T], the subtasks that some of them trained;
    num_samples: images seen; bytes_up, bytes_down: sent by and to all clients of the cohort.
    """

    cohort: list[int]
    returned: list[int]
    positive: Tensor
    negative: Tensor
    trained: Tensor
    learning_rate: float
    num_samples: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass
class State:
    """params: the global model; server: the server algorithm's own; bank: what stays on the clients."""

    params: Params
    server: Params
    bank: Bank = field(repr=False)


def run_round(setting: Setting, state: State, round: int) -> tuple[State, RoundLog]:
    """Round `round`, counted from 0. Raises `Diverged` where a client's loss or update is not finite."""
    data, bank = setting.data, state.bank
    cohort, returned = setting.sampling.draw(data.num_clients, seed=setting.seed, round=round)
    rate = setting.client.learning_rate * setting.schedule.factor(round, setting.num_rounds)
    travelling = {name: value for name, value in state.params.items() if not bank.stays(name)}
    device = data.images.device
    mean = RunningMean(travelling, data.num_tasks, device)
    positive, negative, seen = torch.zeros(3, data.num_tasks, device=device)
    log = RoundLog(cohort, returned, positive, negative, data.assignment[returned].any(0), rate)
    kept: dict[int, Params] = {}
    health = []

    jobs = (
        ClientJob(
            client,
            round,
            bank.load(client, state.params),
            plan_batches(len(data.clients[client]), setting.work, seed=setting.seed, round=round, client=client),
            rate,
        )
        for client in returned
    )
    for result in setting.backend(jobs, data):
        tasks = data.assignment[result.client]
        sent = {name: result.update[name] for name in travelling}
        mean.add(sent, setting.server.weight(len(data.clients[result.client])), tasks)
        kept[result.client] = bank.own_part(result.client, result.params)
        positive += result.positive
        negative += result.negative
        seen += result.num_samples * tasks
        log.num_samples += result.num_samples
        health.append((result.positive + result.negative).sum() + sum(value.sum() for value in result.update.values()))

    _check_health(health, returned, round)
    params, server = setting.server.aggregate(travelling, mean, state.server)
    for client, own in kept.items():
        bank.store(client, own)
    positive /= seen.clamp_min(1)
    negative /= seen.clamp_min(1)
    sizes = message_bytes(travelling, data.assignment)
    log.bytes_down, log.bytes_up = int(sizes[cohort].sum()), int(sizes[returned].sum())
    return State(state.params | params, server, bank), log


def message_bytes(travelling: Params, assignment: Tensor) -> Tensor:
    """What each client sends or is sent in a round, int64 [C]: the shared part and the rows of the heads that it trains."""
    shared = tree.num_bytes({name: value for name, value in travelling.items() if not is_head(name)})
    per_task = tree.num_bytes({name: value[:1] for name, value in travelling.items() if is_head(name)})
    return shared + per_task * assignment.sum(1).cpu()


def _check_health(health: list[Tensor], clients: list[int], round: int) -> None:
    finite = torch.stack(health).isfinite().tolist() if health else []
    for client, good in zip(clients, finite, strict=True):
        if not good:
            raise Diverged(
                f"the loss or the update of client {client} is not finite in round {round + 1}; try a lower client.learning_rate"
            )
