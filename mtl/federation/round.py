"""One round: broadcast, local training, aggregation. State goes in and comes out; a round that fails leaves the old state whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl.base.types import Diverged, Params, Slots
from mtl.data.federated_data import FederatedData
from mtl.federation.aggregators.contract import Update
from mtl.federation.clients.bank import Bank, Kept
from mtl.federation.clients.contract import Backend, Block, CohortJob, Training
from mtl.federation.collectors import Collector, Conflict, Report, all_sums, share_of_trained
from mtl.federation.layout import Layout
from mtl.federation.orders import Cohort, Orders
from mtl.federation.population.population import Population
from mtl.federation.ranks import Ranks
from mtl.federation.schedule import Schedule
from mtl.federation.server import Server


@dataclass
class State:
    """server: slots of the server, of which `params` is the global model; bank: what stays on the clients."""

    server: Slots
    bank: Bank = field(repr=False)

    @property
    def params(self) -> Params:
        """The global model."""
        return self.server["params"]


@dataclass(frozen=True)
class Collected:
    """The collectors of a round. steps: one for each step of the server; extra: others, by name."""

    update: Update
    report: Report
    kept: Kept
    steps: list[Collector]
    extra: dict[str, Conflict]

    def __iter__(self) -> Iterator[Collector]:
        return iter((self.update, self.report, self.kept, *self.steps, *self.extra.values()))


@dataclass(frozen=True)
class Federation:
    """What does not change over the rounds."""

    data: FederatedData
    training: Training
    backend: Backend
    schedule: Schedule
    population: Population
    server: Server
    layout: Layout
    num_rounds: int

    def orders(self, state: State, cohort: Cohort) -> Orders:
        """What the cohort is sent, and how it is to train."""
        round, training = cohort.round, self.training
        return Orders(
            cohort=cohort,
            views=self.population.views,
            slots=training.slots(state.params, self.data.num_tasks),
            travelling=self.layout.travelling(state.params, round),
            frozen=self.layout.frozen(round),
            learning_rate=training.algorithm.learning_rate * self.schedule.factor(round, self.num_rounds),
            progress=round / self.num_rounds,
            seed=training.seed,
        )

    def collectors(self, orders: Orders, bank: Bank) -> Collected:
        """Empty ones, for one round."""
        return Collected(
            update=self.server.aggregator.collect(orders),
            report=Report(orders),
            kept=Kept(bank.kept(orders.slots), orders.cohort.tasks),
            steps=[step.collect(orders) for step in self.server.steps],
            extra={"conflict": Conflict(orders)} if self.training.rule.conflict else {},
        )

    def train(self, orders: Orders, bank: Bank, ranks: Ranks) -> Iterator[tuple[Block, Tensor]]:
        """Train this rank's share of the cohort; yields blocks of clients with their places in the cohort."""
        cohort = orders.cohort
        job = CohortJob(
            clients=[cohort.clients[place] for place in ranks.share(cohort.samples.tolist())],
            round=cohort.round,
            start=lambda clients: bank.load(clients, orders.slots),
            learning_rate=orders.learning_rate,
            progress=orders.progress,
            frozen=orders.frozen,
        )
        for block in self.backend(job, self.data):
            yield block, cohort.places(block.clients)


@dataclass
class RoundLog:
    """cohort: see `Cohort`; losses: [2, T], mean positive and negative loss per image on the clients that train the subtask; trained: bool
    [T], the subtasks that some of them trained; finite: bool [K], whether the loss and the update of each are, on the compute device;
    num_samples: images seen; bytes_up, bytes_down: sent by and to all clients of the cohort; samples_of_views: see `Views.samples`;
    extra: what further collectors found, by name.
    """

    cohort: Cohort
    losses: Tensor
    trained: Tensor
    finite: Tensor
    learning_rate: float
    num_samples: int
    bytes_up: int
    bytes_down: int
    samples_of_views: dict[str, int]
    extra: dict[str, Tensor]

    @classmethod
    def of(cls, fed: Federation, orders: Orders, collected: Collected) -> "RoundLog":
        """The log of a round whose sums are complete."""
        cohort, views, assignment = orders.cohort, orders.views, fed.data.assignment
        return cls(
            cohort=cohort,
            losses=share_of_trained(collected.report.losses, cohort.tasks, cohort.samples),
            trained=cohort.tasks.any(0),
            finite=collected.report.health.isfinite(),
            learning_rate=orders.learning_rate,
            num_samples=int(cohort.samples.sum()),
            bytes_up=views.message_bytes(orders.travelling, assignment, cohort.clients),
            bytes_down=views.message_bytes(orders.travelling, assignment, cohort.drawn),
            samples_of_views=views.samples(cohort.clients, [int(count) for count in cohort.samples.tolist()]),
            extra={name: collector.pairs for name, collector in collected.extra.items()},
        )


def run_round(fed: Federation, state: State, round: int) -> tuple[State, RoundLog]:
    """Run one round, counted from 0.

    Nothing here waits for the compute device unless clients keep something: whether all went well is in the log, for `check_health`.

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
    if collected.kept.sums:
        check_health(log)
        state.bank.store(cohort.clients, collected.kept)
    return State(server, state.bank), log


@contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Autocast would keep the low-precision copy of a weight from one local step to the next."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def check_health(log: RoundLog) -> None:
    """Raises `Diverged` where the loss or the update of a client is not finite."""
    for client, good in zip(log.cohort.clients, log.finite.tolist(), strict=True):
        if not good:
            raise Diverged(
                f"the loss or the update of client {client} is not finite in round {log.cohort.round + 1}; "
                "try a lower client.learning_rate"
            )
