"""Asynchronous rounds: clients leave and arrive on the modelled clock, and a round ends when a buffer of updates is full.

At the beginning `concurrency` clients leave with the model. Whoever arrives, or loses its connection, makes room for another client, drawn
among those that are not in flight. After `buffer` arrivals the server makes a new version of the model: that is a round. At one instant
arrivals come before departures, and the lower client arrives first.

Modelled seconds do not depend on the training, so that the order of arrivals is a function of the seed and of the devices alone. It is
computed as far as it is needed; its cost grows with the number of arrivals.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from mtl.base.seeding import derive_seed
from mtl.federation.population.fleet import FleetSampling
from mtl.federation.population.sampling import Outcome


class Arrivals:
    """Draws the clients of asynchronous rounds; see `Draws`.

    Args:
        fleet: the clients' devices; of its sampling only the drop-out is used.
        concurrency: number of clients in flight, None for all that can take part.
        buffer: number of arrivals that end a round.

    Raises:
        ValueError: `concurrency` is above the number of clients that can take part, or `buffer` above `concurrency`.
    """

    modelled = True

    def __init__(self, fleet: FleetSampling, *, concurrency: int | None, buffer: int) -> None:
        able = len(fleet.able)
        concurrency = able if concurrency is None else concurrency
        if concurrency > able:
            raise ValueError(
                f"algorithm.concurrency must be in [1, {able}], the number of clients that can take part, got {concurrency}"
            )
        if buffer > concurrency:
            raise ValueError(f"algorithm.buffer must be in [1, {concurrency}], the number of clients in flight, got {buffer}")
        self.fleet, self.concurrency, self.buffer = fleet, concurrency, buffer
        self._rounds: list[Outcome] = []
        self._flights = Flights(fleet, concurrency)

    def outcome(self, num_clients: int, *, seed: int, round: int) -> Outcome:
        """See `Draws`: the departures and the arrivals of a round, in their order."""
        assert (num_clients, seed) == (len(self.fleet.workload), self.fleet.seed)
        while len(self._rounds) <= round:
            self._rounds.append(self._flights.next_round(self.buffer))
        return self._rounds[round]

    def write(self, run_dir: Path, sizes: Sequence[int], widths: Sequence[float]) -> None:
        """See `Draws`: writes `fleet.csv`."""
        self.fleet.write(run_dir, sizes, widths)


class Flights:
    """The clients in flight, as modelled time goes on.

    Args:
        fleet: the clients' devices.
        concurrency: number of clients in flight.
    """

    def __init__(self, fleet: FleetSampling, concurrency: int) -> None:
        ledger, every = fleet.ledger, torch.arange(len(fleet.workload))
        arrival, lost = ledger.seconds, ledger.down + ledger.compute  # seconds from the departure
        self._fleet, self._arrival, self._lost = fleet, arrival.tolist(), lost.tolist()
        self._arrival_joules, self._lost_joules = ledger.joules(every, arrival).tolist(), ledger.joules(every, lost).tolist()
        self._version = 0
        self._now = self._round_began = 0.0
        self._idle = list(fleet.able)
        self._room = concurrency  # departures that are due
        self._num_left = 0
        self._events: list[tuple[float, int, bool]] = []  # (instant, client, whether its update arrives), a heap
        self._left: dict[int, tuple[float, int]] = {}  # of each client in flight: instant and version
        self._versions: Counter[int] = Counter()  # clients in flight by version
        self._joules = self._joules_before = 0.0  # of all that have ended; of all at the end of the last round

    def next_round(self, buffer: int) -> Outcome:
        """Return what happens until `buffer` more updates have arrived."""
        drawn: list[int] = []
        returned: list[int] = []
        started: dict[int, int] = {}
        while len(returned) < buffer:
            if not self._events or self._events[0][0] > self._now:
                drawn += self._depart()
            self._now, client, arrives = heapq.heappop(self._events)
            self._joules += (self._arrival_joules if arrives else self._lost_joules)[client]
            version = self._land(client)
            if arrives:
                if version != self._version:
                    started[len(returned)] = version
                returned.append(client)
        self._version += 1
        seconds, self._round_began = self._now - self._round_began, self._now
        return Outcome(drawn, returned, seconds, self._spent(), started, frozenset(self._versions))

    def _depart(self) -> list[int]:
        """Let clients leave until there is no more room, and return them."""
        leaving = []
        seed, dropout = self._fleet.seed, self._fleet.sampling.dropout
        for _ in range(self._room):
            place = derive_seed(seed, "departure", self._num_left) % len(self._idle)
            self._idle[place], self._idle[-1] = self._idle[-1], self._idle[place]
            client = self._idle.pop()
            stays = derive_seed(seed, "client-dropout", self._num_left, client) >= dropout * 2**63
            heapq.heappush(self._events, (self._now + (self._arrival if stays else self._lost)[client], client, stays))
            self._left[client] = self._now, self._version
            self._versions[self._version] += 1
            self._num_left += 1
            leaving.append(client)
        self._room = 0
        return leaving

    def _land(self, client: int) -> int:
        """Take a client out of flight, and return the version that it left with."""
        _, version = self._left.pop(client)
        self._versions[version] -= 1
        if not self._versions[version]:
            del self._versions[version]
        self._idle.append(client)
        self._room += 1
        return version

    def _spent(self) -> torch.Tensor:
        """Return the energy that all clients have used since the last round ended, float64 [1]."""
        until = self._now - torch.tensor([left for left, _ in self._left.values()], dtype=torch.float64)
        in_flight = self._fleet.ledger.joules(torch.tensor(list(self._left), dtype=torch.long), until)
        total = self._joules + float(in_flight.sum())
        spent, self._joules_before = total - self._joules_before, total
        return torch.tensor([spent], dtype=torch.float64)
