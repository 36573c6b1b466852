"""Quadratic federations: clients that minimise h/2 (x - b)^2 with full gradients, trained by the real rounds and backends.

An image of a client holds the b and the root of h of each subtask, and the model has a coordinate for each subtask: x under the heads, or,
of a single subtask, shared under the trunk. The facts of "problem Q" are of two clients, b = (1, -1), h = (1, 4), from x = 0.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mtl.base.types import Slots
from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.contract import Backend, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.objective import Objective
from mtl.federation.population.sampling import Sampling
from mtl.federation.round import Federation, RoundLog, State, run_round
from mtl.losses.pairs import PairLoss, TaskCounts
from mtl.models.multi_task_model import MultiTaskModel
from tests.conftest import make_federation
from tests.federation.small_federations import build_federation, initial_state

SGD = LocalSGD(learning_rate=0.1, momentum=0.0, weight_decay=0.0, head_scale=1.0)


class Residuals(nn.Module):
    """Root of h times (x - b), [B, T], for images [B, 1, 2, T] of b and the root of h."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(num_tasks, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 1] * (self.x - images[:, 0, 0])


class Half(PairLoss):
    """Half the square of the logit, whatever the label."""

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        half = logits.square() / 2
        return half, half


def quadratic_data(
    b: Sequence[Sequence[float]], h: Sequence[Sequence[float]], *, images: Sequence[int], assignment: Tensor | None = None
) -> FederatedData:
    """Clients with b and h of each subtask, [C, T], each of them in so many equal images."""
    clients, pictures = [], []
    for client, count in enumerate(images):
        start = sum(images[:client])
        clients.append(torch.arange(start, start + count))
        pictures += [torch.tensor([b[client], h[client]], dtype=torch.float64)] * count
    stacked = torch.stack(pictures)[:, None]
    stacked[:, :, 1] = stacked[:, :, 1].sqrt()
    yes = torch.ones(len(stacked), len(b[0]), dtype=torch.bool)
    tasks = torch.ones(len(images), len(b[0]), dtype=torch.bool) if assignment is None else assignment
    sizes = torch.tensor(images)[:, None] * tasks
    return replace(
        make_federation(),
        tasks=tuple(f"t{task}" for task in range(len(b[0]))),
        images=stacked,
        targets=yes,
        known=yes,
        clients=Ragged.of(clients),
        assignment=tasks,
        positives=sizes,
        negatives=torch.zeros_like(sizes),
    )


def quadratic(
    algorithm: Algorithm,
    *,
    b: Sequence[Sequence[float]] = ((1.0,), (-1.0,)),
    h: Sequence[Sequence[float]] = ((1.0,), (4.0,)),
    images: Sequence[int] | None = None,
    heads: bool = False,
    assignment: Tensor | None = None,
    client: LocalSGD = SGD,
    work: LocalWork | None = None,
    make: Callable[[Training], Backend] = LoopBackend,
    **options: Any,
) -> Federation:
    """Return the federation; problem Q unless said otherwise."""
    data = quadratic_data(b, h, images=images or [1] * len(b), assignment=assignment)
    parts = (nn.Identity(), Residuals(data.num_tasks)) if heads else (Residuals(data.num_tasks), nn.Identity())
    model = MultiTaskModel(*parts, Half())
    objective = Objective(Augmentation(flip=False), Normalise(mean=[0.0], deviation=[1.0]))
    training = Training(model, objective, client, work or LocalWork(batch_size=64, steps=5), 0)
    return build_federation(data, training, make, algorithm=algorithm, **options)


def rounds(fed: Federation, count: int, state: State | None = None, *, first: int = 0) -> tuple[list[State], list[RoundLog]]:
    """Return the states after each of `count` rounds, which share one bank, and their logs."""
    states, logs = [initial_state(fed) if state is None else state], []
    for round in range(first, first + count):
        after, log = run_round(fed, states[-1], round)
        states.append(after)
        logs.append(log)
    return states[1:], logs


def step_by_step(fed: Federation, count: int) -> Iterator[State]:
    """Yield the state after each round; its bank is as it is then."""
    state = initial_state(fed)
    for round in range(count):
        state, _ = run_round(fed, state, round)
        yield state


def path(fed: Federation, count: int) -> list[float]:
    """Return the single coordinate of the global model after each round."""
    states, _ = rounds(fed, count)
    return [float(next(iter(state.params.values()))) for state in states]


def limit(fed: Federation) -> float:
    """Return where the coordinate ends, from zero, of an algorithm without state: its round is x <- a x + b."""
    first, second = path(fed, 2)
    return first / (1 - (second - first) / first)


def kept(fed: Federation, state: State, slot: str) -> Tensor:
    """Return the slot of all clients, [C, T]."""
    slots: Slots = fed.training.slots(state.params, fed.data.num_tasks, fed.layout)
    (value,) = state.bank.load(range(fed.data.num_clients), slots)[slot].values()
    return value


def only(drawn: Sequence[int], back: Sequence[int] | None = None) -> Sampling:
    """Return a sampling that draws the given clients in every round, of whom some come back."""

    class Chosen(Sampling):
        def draw(
            self, num_clients: int, *, seed: int, round: int, among: Sequence[int] | None = None
        ) -> tuple[list[int], list[int]]:
            return list(drawn), list(drawn if back is None else back)

    return Chosen()
