"""One round: broadcast, local training, aggregation. It returns a new state; a round that fails leaves the old one unchanged."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl.base.types import Diverged, Params, Slots
from mtl.data.federated_data import FederatedData
from mtl.federation.aggregators.contract import Update
from mtl.federation.algorithms.contract import RECEIVED
from mtl.federation.clients.bank import Bank, ClientStates
from mtl.federation.clients.contract import Backend, Block, CohortJob, Start, Training
from mtl.federation.collectors import Collector, Conflict, Report, all_sums, mean_losses
from mtl.federation.layout import Layout
from mtl.federation.orders import Cohort, Orders
from mtl.federation.population.population import Population
from mtl.federation.ranks import Ranks
from mtl.federation.schedule import Schedule
from mtl.federation.server import Server


@dataclass
class State:
    """The state of a federation between rounds.

    Attributes:
        server: slots of the server; `params` is the global model.
        bank: per-client state.
        versions: earlier global models that clients in flight train on, by round; empty in synchronous rounds.
    """

    server: Slots
    bank: Bank = field(repr=False)
    versions: dict[int, Params] = field(default_factory=dict, repr=False)

    @property
    def params(self) -> Params:
        """The parameters of the global model."""
        return self.server["params"]


@dataclass(frozen=True)
class Collected:
    """The collectors of a round.

    Attributes:
        update: the clients' updates.
        report: losses and health of each client.
        client_states: what the clients keep.
        steps: one for each server step.
        extra: further ones, by name.
    """

    update: Update
    report: Report
    client_states: ClientStates
    steps: list[Collector]
    extra: dict[str, Conflict]

    def __iter__(self) -> Iterator[Collector]:
        return iter((self.update, self.report, self.client_states, *self.steps, *self.extra.values()))


@dataclass(frozen=True)
class Federation:
    """What does not change over the rounds.

    Attributes:
        data: images, labels, partition and assignment.
        training: what every client trains with.
        backend: trains the clients of a cohort.
        schedule: the clients' learning rate over the rounds.
        population: draws the cohorts.
        server: aggregates.
        layout: which parameters stay on the clients, and which are frozen.
        num_rounds: rounds of the run.
    """

    data: FederatedData
    training: Training
    backend: Backend
    schedule: Schedule
    population: Population
    server: Server
    layout: Layout
    num_rounds: int

    def orders(self, state: State, cohort: Cohort) -> Orders:
        """Return what the server sends to a cohort, and how the cohort trains."""
        round, training = cohort.round, self.training
        travelling = self.layout.travelling(state.params, round)
        return Orders(
            cohort=cohort,
            views=self.population.views,
            slots=training.slots(state.params, self.data.num_tasks, self.layout),
            travelling=travelling,
            broadcast=self.server.algorithm.broadcast(state.server, travelling),
            frozen=self.layout.frozen(round),
            learning_rate=training.optimizer.learning_rate * self.schedule.factor(round, self.num_rounds),
            progress=round / self.num_rounds,
            seed=training.seed,
            versions=state.versions,
        )

    def collectors(self, orders: Orders, bank: Bank) -> Collected:
        """Return the empty collectors of one round."""
        return Collected(
            update=self.server.collect(orders),
            report=Report(orders),
            client_states=ClientStates(bank.client_slots(orders.slots), orders.cohort.tasks),
            steps=[step.collect(orders) for step in self.server.steps],
            extra={"conflict": Conflict(orders)} if self.training.rule.conflict else {},
        )

    def train(self, orders: Orders, bank: Bank, ranks: Ranks) -> Iterator[tuple[Block, Tensor]]:
        """Train this rank's share of the cohort; yield blocks of clients with their positions in the cohort, int64 [K]."""
        cohort, slots = orders.cohort, orders.slots | orders.broadcast
        if RECEIVED in self.training.client.reads:
            slots = slots | {RECEIVED: orders.travelling}
        mine = set(ranks.share(cohort.samples.tolist()))
        for again, places in enumerate(cohort.waves()):
            job = CohortJob(
                clients=[client for client, place in places.items() if place in mine],
                round=cohort.round,
                start=_start_of(orders, bank, slots, places),
                learning_rate=orders.learning_rate,
                progress=orders.progress,
                frozen=orders.frozen,
                again=again,
            )
            for block in self.backend(job, self.data):
                yield block, torch.tensor([places[client] for client in block.clients], dtype=torch.long)


def _start_of(orders: Orders, bank: Bank, slots: Slots, places: Mapping[int, int]) -> Start:
    """Return the start of clients: their state, and the parameters that each was sent. `places` are their positions in the cohort."""

    def start(clients: Sequence[int]) -> Slots:
        loaded = bank.load(clients, slots)
        earlier = orders.earlier([places[client] for client in clients])
        return loaded | {slot: loaded[slot] | earlier for slot in ("params", RECEIVED) if slot in loaded}

    return start


@dataclass
class RoundLog:
    """The log of one round.

    Attributes:
        cohort: the clients of the round.
        losses: [2, T], mean positive and negative loss per image, of each subtask over the clients that train it.
        trained: bool [T], the subtasks that some client trained.
        finite: bool [K], whether loss and update of each client are finite; on the compute device.
        learning_rate: the clients' learning rate.
        num_samples: images seen by all clients.
        up: bytes that the clients sent, by slot.
        down: bytes that were sent to the clients, by slot.
        samples_of_views: see `Views.samples`.
        extra: results of further collectors, by name.
    """

    cohort: Cohort
    losses: Tensor
    trained: Tensor
    finite: Tensor
    learning_rate: float
    num_samples: int
    up: dict[str, int]
    down: dict[str, int]
    samples_of_views: dict[str, int]
    extra: dict[str, Tensor]

    @property
    def bytes_up(self) -> int:
        """Bytes that the clients sent."""
        return sum(self.up.values())

    @property
    def bytes_down(self) -> int:
        """Bytes that were sent to the clients."""
        return sum(self.down.values())

    @classmethod
    def of(cls, fed: Federation, orders: Orders, collected: Collected) -> "RoundLog":
        """Return the log of a round from its collectors, which must be summed over the ranks."""
        cohort, views, assignment, travelling = orders.cohort, orders.views, fed.data.assignment, orders.travelling
        up: Slots = {"params": travelling} | dict.fromkeys(fed.training.client.sends, travelling)
        down = {"params": travelling} | orders.broadcast
        return cls(
            cohort=cohort,
            losses=mean_losses(collected.report.losses, cohort.tasks, cohort.samples),
            trained=cohort.tasks.any(0),
            finite=collected.report.health.isfinite(),
            learning_rate=orders.learning_rate,
            num_samples=int(cohort.samples.sum()),
            up={slot: views.message_bytes(sent, assignment, cohort.clients) for slot, sent in up.items()},
            down={slot: views.message_bytes(sent, assignment, cohort.drawn) for slot, sent in down.items()},
            samples_of_views=views.samples(cohort.clients, [int(count) for count in cohort.samples.tolist()]),
            extra={name: collector.pairs for name, collector in collected.extra.items()},
        )


def run_round(fed: Federation, state: State, round: int) -> tuple[State, RoundLog]:
    """Run one round, counted from 0.

    It does not wait for the compute device, except where clients keep state: the caller checks the log with `check_health`.

    Returns:
        The state after the round, and its log.

    Raises:
        Diverged: clients keep parameters, and the loss or the update of one of them is not finite.
    """
    ranks = Ranks()
    cohort = fed.population.draw(fed.data, round)
    orders = fed.orders(state, cohort)
    collected = fed.collectors(orders, state.bank)
    with no_autocast_cache():
        for block, places in fed.train(orders, state.bank, ranks):
            for collector in collected:
                collector.add(block, places)
        ranks.sum(all_sums(list(collected)))
        server = fed.server.finish(state.server, orders, collected.update, collected.steps)
    log = RoundLog.of(fed, orders, collected)
    if collected.client_states.sums:
        check_health(log)
        state.bank.store(cohort.clients, collected.client_states)
    return State(server, state.bank, orders.versions_in_flight()), log


@contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Turn off autocast's cache, which would reuse the low-precision copy of a weight in the next local step."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def check_health(log: RoundLog) -> None:
    """Check that the loss and the update of every client are finite.

    Raises:
        Diverged: those of a client are not.
    """
    for client, finite in zip(log.cohort.clients, log.finite.tolist(), strict=True):
        if not finite:
            raise Diverged(
                f"the loss or the update of client {client} is not finite in round {log.cohort.round + 1}; "
                "try a lower client.learning_rate"
            )
