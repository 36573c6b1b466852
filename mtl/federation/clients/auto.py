"""The fastest backend for this model, these clients and this machine: each is timed once on a real cohort."""

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
COMPILING = 40.0  # seconds to compile and load a step on a slow machine


class AutoBackend:
    """Times the backends on the first cohort that has clients, then uses the fastest.

    Compilation is tried only where the rounds to come could repay it. A resumed run takes the backend of its first part, so that it sums in
    the same order.

    Args:
        training: what every client trains with.
        num_rounds: rounds of the run.
        block: clients that are stacked at most, None for as many as memory holds.
        compile: `auto`, `always` or `never`.
    """

    def __init__(self, training: Training, *, num_rounds: int, block: int | None = None, compile: str = "auto") -> None:
        self.training, self.num_rounds, self.block, self.compile = training, num_rounds, block, compile
        self._chosen: Backend | None = None

    @property
    def name(self) -> str:
        """The chosen backend's name, `auto` before the choice."""
        return "auto" if self._chosen is None else self._chosen.name

    def settle(self, name: str) -> None:
        """Use the backend of this name without timing any."""
        if name != "auto":
            self._chosen = make_backend(name, self.training, num_rounds=self.num_rounds, block=self.block)

    def state_dict(self) -> dict[str, Any]:
        """See `Backend`."""
        return {"name": self.name} if self._chosen is None else self._chosen.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Backend`."""
        self.settle(state["name"])
        if self._chosen is not None:
            self._chosen.load_state_dict(state)

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
        """See `Backend`."""
        if self._chosen is None:
            ranks = Ranks()
            # All ranks that have clients measure at the same time, and every rank takes the choice of the first of them.
            choices = [choice for choice in ranks.gather(self._choose(job, data) if job.clients else None) if choice is not None]
            if not choices:
                return  # no client came back: the next cohort decides
            name, reason = choices[0]
            self.settle(name)
            if ranks.is_first:
                logger.info("backend: %s (%s)", name, reason)
        assert self._chosen is not None
        yield from self._chosen(job, data)

    def _choose(self, job: CohortJob, data: FederatedData) -> tuple[str, str]:
        """Return the name of the fastest backend, and the reason."""
        steps = [self.training.work.num_steps(data.clients.size(client)) for client in job.clients]
        trial = replace(job, clients=job.clients[:TRIED_CLIENTS], max_steps=TRIED_STEPS)
        loop = _seconds(LoopBackend(self.training), trial, data) / sum(min(n, TRIED_STEPS) for n in steps[:TRIED_CLIENTS])
        seconds = {"loop": loop * sum(steps)}
        try:
            seconds["vmap"] = _stacked_seconds(StackedBackend(self.training, block=self.block), job, data)
        except CannotStack as reason:
            return "loop", str(reason)
        pays_off = self.num_rounds * min(seconds.values()) > 2 * COMPILING
        try_compiled = self.compile == "always" or (self.compile == "auto" and (pays_off or data.images.device.type == "cuda"))
        if try_compiled and self.training.rule.compiles:
            seconds["compiled"] = _stacked_seconds(StackedBackend(self.training, block=self.block, compiled=True), job, data)
        best = min(seconds, key=lambda name: seconds[name])
        timings = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
        return best, f"a round of {len(steps)} clients would take: {timings}"


def _stacked_seconds(backend: StackedBackend, job: CohortJob, data: FederatedData) -> float:
    """Estimate the seconds of a stacked round from a few steps of its first block.

    A step of k clients takes about a + b k seconds. Where clients have unequal numbers of steps, k falls as they finish; then a and b are
    fitted to steps of the block and of half of it.
    """
    num_steps = {client: backend.training.work.num_steps(data.clients.size(client)) for client in job.clients}
    longest_first = sorted(job.clients, key=lambda client: -num_steps[client])
    block = backend.settle_block(data)
    steps = sum(num_steps[client] for client in longest_first[::block])  # a block takes as many as its longest
    client_steps = sum(num_steps.values())

    def time_steps(clients: list[int]) -> tuple[float, int]:
        seconds = _seconds(backend, replace(job, clients=clients, max_steps=TRIED_STEPS), data)
        return seconds, sum(min(num_steps[client], TRIED_STEPS) for client in clients)

    first_block = longest_first[:block]
    block_seconds, block_client_steps = time_steps(first_block)
    tried_steps = min(num_steps[first_block[0]], TRIED_STEPS)
    if block_client_steps * steps == client_steps * tried_steps:
        return block_seconds / tried_steps * steps
    half_seconds, half_client_steps = time_steps(first_block[: (len(first_block) + 1) // 2])
    slope = (block_seconds - half_seconds) / (block_client_steps - half_client_steps)
    slope = min(max(slope, 0.0), block_seconds / block_client_steps)
    return (block_seconds - slope * block_client_steps) / tried_steps * steps + slope * client_steps


def make_backend(name: str, training: Training, *, num_rounds: int, block: int | None = None, compile: str = "auto") -> Backend:
    """Return a backend by its name.

    Args:
        name: auto, loop, vmap, or compiled, which is vmap with compile=always.
        training: what every client trains with.
        num_rounds: rounds of the run.
        block: clients that are stacked at most, None for as many as memory holds.
        compile: auto, always or never.

    Raises:
        ValueError: `name`, `compile` or `block` is not one of the allowed values.
    """
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
    """Return the seconds of a job, after a first run that does not count."""
    for _ in range(2):
        started = time.perf_counter()
        for _ in backend(job, data):
            pass
        if data.images.device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started
