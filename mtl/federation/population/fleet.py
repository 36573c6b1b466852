"""Rounds among modelled devices: which clients can be drawn, how long the round lasts, and whose updates arrive in time.

A round begins with the broadcast to its cohort. In modelled time it ends when `wait_for` updates have arrived (all, where it is None), at
the deadline, or when no client is left to wait for, whichever comes first. A client that drops out trains, and its connection breaks when
it begins to send: from then on the server does not wait for it. A client that is late stops when the round ends, and is left out of the
aggregation like one that dropped out. The bytes of an update that did not arrive in full are not counted. Ties between clients that arrive
at the same moment are broken at random, by the seed.
"""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mtl.base.files import atomic_write
from mtl.base.seeding import derive_seed
from mtl.devices.fleet import Fleet, training_memory
from mtl.devices.ledger import Ledger, Workload
from mtl.devices.profiles import DeviceProfile
from mtl.federation.population.sampling import Outcome, Sampling

logger = logging.getLogger(__name__)


class FleetSampling:
    """Draws cohorts among the clients whose device has the memory for a training step; see `Draws`.

    Args:
        sampling: draws the cohort, and who of it drops out.
        fleet: the devices and the server's limits.
        workload: work of each client in a round.
        assignment: bool [C, T], the subtasks that each client trains.
        seed: seed of the run.

    Raises:
        ValueError: a client has too little memory and `fleet.memory` is not skip, too few clients are left for a cohort, or no client can
            meet the deadline.
    """

    modelled = True

    def __init__(self, sampling: Sampling, fleet: Fleet, workload: Workload, assignment: Tensor, *, seed: int) -> None:
        self.sampling, self.fleet, self.workload, self.seed = sampling, fleet, workload, seed
        self.profiles, self.device = fleet.assign(len(workload), seed=seed)
        self.ledger = Ledger.of(workload, self.profiles, self.device)
        memory = training_memory(self.profiles, self.device)
        self.able = (workload.memory <= memory).nonzero().flatten().tolist()
        small = (workload.memory > memory).nonzero().flatten().tolist()
        if small and (fleet.memory != "skip" or not self.able):
            advice = "fleet.memory=skip leaves such clients out"
            if fleet.memory == "refuse":
                advice += ", and fleet.memory=shrink gives them a narrower model"
            raise ValueError(
                f"client {small[0]} on {self.profile(small[0]).name} needs {workload.memory[small[0]]:,.0f} bytes for a training step "
                + ("of the smallest model that it may train " if fleet.memory == "shrink" else "")
                + f"and has {memory[small[0]]:,.0f}; {len(small)} of {len(workload)} clients have too little memory"
                + (f"; {advice}" if self.able else "")
            )
        if small:
            logger.warning(
                "%d of %d clients have too little memory for a training step and are never drawn; no other client trains %d of %d subtasks",
                len(small),
                len(workload),
                int((~assignment[self.able].any(0)).sum()),
                assignment.shape[1],
            )
        if fleet.deadline is not None:
            late = int((self.ledger.seconds[self.able] > fleet.deadline).sum())
            if late == len(self.able):
                soonest = float(self.ledger.seconds[self.able].min())
                raise ValueError(
                    f"fleet.deadline must be at least {soonest:.4g} s, the time of the fastest client, got {fleet.deadline}"
                )
            if late:
                logger.warning(
                    "%d of %d clients are too slow for fleet.deadline=%g in any round", late, len(workload), fleet.deadline
                )
        if sampling.cohort is not None and sampling.cohort > len(self.able):
            sampling.draw(len(workload), seed=seed, round=0, among=self.able)  # raises
        size = sampling.cohort or len(self.able)
        if fleet.wait_for is not None and fleet.wait_for > size:
            raise ValueError(f"fleet.wait_for must be in [1, {size}], the size of a cohort, got {fleet.wait_for}")

    def profile(self, client: int) -> DeviceProfile:
        """Return the device profile of a client."""
        return self.profiles[int(self.device[client])]

    def outcome(self, num_clients: int, *, seed: int, round: int) -> Outcome:
        """See `Draws`. Updates that arrive late do not count as returned."""
        assert (num_clients, seed) == (len(self.workload), self.seed)
        cohort, stay = self.sampling.draw(len(self.workload), seed=self.seed, round=round, among=self.able)
        index = torch.tensor(cohort, dtype=torch.long)
        ledger, deadline = self.ledger, float("inf") if self.fleet.deadline is None else self.fleet.deadline
        arrival = dict(zip(cohort, ledger.seconds[index].tolist(), strict=True))
        lost = dict(zip(cohort, (ledger.down + ledger.compute)[index].tolist(), strict=True))
        staying = set(stay)
        end = [(arrival if client in staying else lost)[client] for client in cohort]
        in_time = [client for client in stay if arrival[client] <= deadline]
        in_time.sort(key=lambda client: (arrival[client], derive_seed(self.seed, "arrival", round, client)))
        num_awaited = len(cohort) if self.fleet.wait_for is None else self.fleet.wait_for
        seconds = arrival[in_time[num_awaited - 1]] if len(in_time) >= num_awaited else min(deadline, max(end, default=0.0))
        until = torch.tensor(end, dtype=torch.float64).clamp(max=seconds)
        return Outcome(cohort, sorted(in_time[:num_awaited]), seconds, ledger.joules(index, until))

    def write(self, run_dir: Path, sizes: Sequence[int], widths: Sequence[float]) -> None:
        """See `Draws`: writes `fleet.csv`."""
        ledger, workload = self.ledger, self.workload
        every = torch.arange(len(workload))
        columns = {
            "flops": workload.flops,
            "bytes_down": workload.bytes_down,
            "bytes_up": workload.bytes_up,
            "modelled_memory_bytes": workload.memory,
            "modelled_seconds_down": ledger.down,
            "modelled_seconds_compute": ledger.compute,
            "modelled_seconds_up": ledger.up,
            "modelled_joules": ledger.joules(every, ledger.seconds),
        }
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["client", "device", "images", "drawn", "width", *columns])
        able = set(self.able)
        values = torch.stack(list(columns.values()), 1).tolist()
        for client, numbers in enumerate(values):
            rows.writerow(
                [client, self.profile(client).name, sizes[client], int(client in able)]
                + [f"{number:.9g}" for number in (widths[client], *numbers)]
            )
        with atomic_write(run_dir / "fleet.csv") as file:
            file.write(text.getvalue().encode())
