"""The fastest backend for this model, these clients and this machine: each is tried on a real cohort, once."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from mtl.data.federated_data import FederatedData
from mtl.federation.clients.contract import Backend, Block, CohortJob, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import CannotStack, StackedBackend
from mtl.federation.ranks import Ranks

logger = logging.getLogger(__name__)
TRIED_STEPS = 4
TRIED_CLIENTS = 4
BACKENDS = ("auto", "loop", "vmap", "compiled")
COMPILE = ("auto", "always", "never")
COMPILING = 40.0  # seconds that making and loading a compiled step takes on a slow machine


class AutoBackend:
    """Times the loop, the stacked step and, where the rounds to come could repay it, the compiled stacked step; then it is one of them.

    The first cohort that has clients decides. num_rounds: of the run. A resumed run is told what the first part of it took, so that it goes
    on with the same arithmetic.
    """

    def __init__(self, training: Training, *, num_rounds: int, block: int | None = None, compile: str = "auto") -> None:
        self.training, self.num_rounds, self.block, self.compile = training, num_rounds, block, compile
        self._chosen: Backend | None = None

    @property
    def name(self) -> str:
        return "auto" if self._chosen is None else self._chosen.name

    def settle(self, name: str) -> None:
        """Take the backend of this name and try nothing."""
        if name != "auto":
            self._chosen = make_backend(name, self.training, num_rounds=self.num_rounds, block=self.block)

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name} if self._chosen is None else self._chosen.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.settle(state["name"])
        if self._chosen is not None:
            self._chosen.load_state_dict(state)

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
        if self._chosen is None:
            ranks = Ranks()
            # Every rank that has clients measures while the others do, and all take what the first of them found.
            found = [choice for choice in ranks.gather(self._choose(job, data) if job.clients else None) if choice is not None]
            if not found:
                return  # nobody came back: the next cohort decides
            name, why = found[0]
            self.settle(name)
            if ranks.first:
                logger.info("backend: %s (%s)", name, why)
        assert self._chosen is not None
        yield from self._chosen(job, data)

    def _choose(self, job: CohortJob, data: FederatedData) -> tuple[str, str]:
        steps = [self.training.work.num_steps(data.clients.size(client)) for client in job.clients]
        few = replace(job, clients=job.clients[:TRIED_CLIENTS], max_steps=TRIED_STEPS)
        loop = _seconds(LoopBackend(self.training), few, data) / sum(min(n, TRIED_STEPS) for n in steps[:TRIED_CLIENTS])
        seconds = {"loop": loop * sum(steps)}
        try:
            seconds["vmap"] = _stacked_seconds(StackedBackend(self.training, block=self.block), job, data)
        except CannotStack as reason:
            return "loop", str(reason)
        pays = self.num_rounds * min(seconds.values()) > 2 * COMPILING
        wanted = self.compile == "always" or (self.compile == "auto" and (pays or data.images.device.type == "cuda"))
        if wanted and self.training.rule.compiles:
            seconds["compiled"] = _stacked_seconds(StackedBackend(self.training, block=self.block, compiled=True), job, data)
        best = min(seconds, key=lambda name: seconds[name])
        told = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
        return best, f"a round of {len(steps)} clients would take: {told}"


def _stacked_seconds(backend: StackedBackend, job: CohortJob, data: FederatedData) -> float:
    """The time of a stacked round, from a few steps of its first block.

    A step of k clients takes about a + b k. Where clients have unequal numbers of steps, k falls as they finish, and a and b are those of
    steps of the block and of half of it.
    """
    num_steps = {client: backend.training.work.num_steps(data.clients.size(client)) for client in job.clients}
    longest_first = sorted(job.clients, key=lambda client: -num_steps[client])
    block = backend.settle_block(data)
    steps = sum(num_steps[client] for client in longest_first[::block])  # a block takes as many as its longest
    of_clients = sum(num_steps.values())

    def tried(clients: list[int]) -> tuple[float, int]:
        seconds = _seconds(backend, replace(job, clients=clients, max_steps=TRIED_STEPS), data)
        return seconds, sum(min(num_steps[client], TRIED_STEPS) for client in clients)

    first = longest_first[:block]
    whole, whole_of_clients = tried(first)
    tried_steps = min(num_steps[first[0]], TRIED_STEPS)
    if whole_of_clients * steps == of_clients * tried_steps:
        return whole / tried_steps * steps
    half, half_of_clients = tried(first[: (len(first) + 1) // 2])
    slope = (whole - half) / (whole_of_clients - half_of_clients)
    slope = min(max(slope, 0.0), whole / whole_of_clients)
    return (whole - slope * whole_of_clients) / tried_steps * steps + slope * of_clients


def make_backend(name: str, training: Training, *, num_rounds: int, block: int | None = None, compile: str = "auto") -> Backend:
    """name: auto, loop, vmap, or compiled, which is vmap with compile=always."""
    if name not in BACKENDS:
        raise ValueError(f"engine.backend must be one of {', '.join(BACKENDS)}, got {name}")
    if compile not in COMPILE:
        raise ValueError(f"engine.compile must be one of {', '.join(COMPILE)}, got {compile}")
    if name == "auto":
        return AutoBackend(training, num_rounds=num_rounds, block=block, compile=compile)
    if name == "loop":
        return LoopBackend(training)
    return StackedBackend(training, block=block, compiled=name == "compiled" or compile == "always")


def _seconds(backend: Backend, job: CohortJob, data: FederatedData) -> float:
    """How long a job takes once everything is warm."""
    for _ in range(2):
        started = time.perf_counter()
        for _ in backend(job, data):
            pass
        if data.images.device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started
