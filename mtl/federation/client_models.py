"""The models that answer for single clients, a block of clients at a time.

A client's model is the slot in `ClientAlgorithm.answers`, with what else stays on the client; or, with `FineTuning`, that model after some
further local steps on the client's training images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mtl.base.types import Params, Slots
from mtl.data.client_batches import LocalWork
from mtl.federation.algorithms.algorithm import FineTuning
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.clients.bank import Bank
from mtl.federation.clients.block import block_size
from mtl.federation.clients.contract import CohortJob, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.round import Federation, State

TUNING = -1  # stands for a round in the draws of batches
Models = Iterator[tuple[Sequence[int], Params]]


def personal_params(bank: Bank, clients: Sequence[int], training: Training, params: Params, num_tasks: int) -> Params:
    """Return the parameters of the models that answer for some clients, stacked [K, ...].

    Args:
        bank: what the clients keep.
        clients: K clients.
        training: what every client trains with.
        params: of the global model.
        num_tasks: T.
    """
    answers, slots = training.client.answers, training.slots(params, num_tasks, bank.layout)
    stacked = bank.load(clients, {slot: slots[slot] for slot in {"params", answers}})
    return stacked["params"] | stacked[answers]


def personal_models(fed: Federation, state: State, clients: Sequence[int], *, stacked: bool) -> Models:
    """Yield the models that answer for some clients, stacked [K, ...]."""
    size = block_size(fed.training, fed.data) if stacked else 1
    for start in range(0, len(clients), size):
        block = clients[start : start + size]
        yield block, personal_params(state.bank, block, fed.training, state.params, fed.data.num_tasks)


def tuned_models(fed: Federation, state: State, clients: Sequence[int], tuning: FineTuning, *, stacked: bool) -> Models:
    """Yield the clients' models after some local steps, stacked [K, ...]; valid until the next block."""
    training = replace(
        fed.training, client=ClientAlgorithm(), work=LocalWork(batch_size=fed.training.work.batch_size, steps=tuning.steps)
    )

    def start(block: Sequence[int]) -> Slots:
        slots = training.slots(state.params, fed.data.num_tasks, state.bank.layout)
        own = personal_params(state.bank, block, fed.training, state.params, fed.data.num_tasks)
        return state.bank.load(block, slots) | {"params": own}

    job = CohortJob(
        clients=clients,
        round=TUNING,
        start=start,
        learning_rate=tuning.learning_rate or fed.training.optimizer.learning_rate,
        progress=1.0,
        frozen=fed.layout.frozen(fed.num_rounds - 1),
    )
    for trained in (StackedBackend if stacked else LoopBackend)(training)(job, fed.data):
        yield trained.clients, trained.slots["params"]
