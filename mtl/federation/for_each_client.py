"""Train each client of a cohort from its own start.

A backend is called with the jobs of a round and yields a result for each, in the order of the jobs. `LoopBackend` is the readable
reference: one working model, one client after the other. Results must not depend on the backend or on the company a client keeps.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mtl.data.client_batches import ClientBatches
from mtl.data.federated_data import FederatedData
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.hard_sharing import HardSharing
from mtl.seeding import derive_seed
from mtl.types import Params


@dataclass(frozen=True)
class ClientJob:
    """What one client does in a round. start: its parameters; learning_rate: of this round."""

    client: int
    round: int
    start: Params
    batches: ClientBatches
    learning_rate: float


@dataclass(frozen=True)
class ClientResult:
    """params: after training, valid until the next result is asked for; update: params - start;
    positive, negative: [T], the losses summed over the images seen; num_samples: images seen.
    """

    client: int
    params: Params
    update: Params
    positive: Tensor
    negative: Tensor
    num_samples: int


class Backend(Protocol):
    def __call__(self, jobs: Iterable[ClientJob], data: FederatedData) -> Iterator[ClientResult]: ...


class LoopBackend:
    """The clients one by one on a working copy of `model`, whose parameters are reset in place."""

    def __init__(self, model: HardSharing, objective: Objective, algorithm: LocalSGD, *, seed: int) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
        self.objective, self.algorithm, self.seed = objective, algorithm, seed

    def __call__(self, jobs: Iterable[ClientJob], data: FederatedData) -> Iterator[ClientResult]:
        self.model.to(data.images.device)
        with torch.random.fork_rng():
            for job in jobs:
                yield self._train(job, data)

    def _train(self, job: ClientJob, data: FederatedData) -> ClientResult:
        # Dropout layers draw from torch's own generator: give them a place in the naming of draws.
        torch.manual_seed(derive_seed(self.seed, "dropout", job.round, job.client))
        device = data.images.device
        counts = TaskCounts(data.positives[job.client].to(device).float(), data.negatives[job.client].to(device).float())
        params: Params = dict(self.model.named_parameters())
        with torch.no_grad():
            torch._foreach_copy_(list(params.values()), [job.start[name] for name in params])
        state = self.algorithm.init(params)
        index = data.clients[job.client][job.batches.index.to(device)]
        valid, draws = job.batches.valid.to(device), job.batches.draw.to(device)
        sums = torch.zeros(2, data.num_tasks, device=device)
        for chosen, counted, draw in zip(index, valid, draws, strict=True):
            inputs = self.objective.inputs(data.images[chosen], draw).contiguous(memory_format=torch.channels_last)
            mask = data.known[chosen] & data.assignment[job.client]
            losses = self.objective.losses(self.model, inputs, data.targets[chosen], mask, counted, counts)
            grads = torch.autograd.grad(losses.tasks.sum(), list(params.values()))
            params, state = self.algorithm.step(params, dict(zip(params, grads, strict=True)), state, job.learning_rate)
            sums += self.objective.image_sums(losses, counted)
        with torch.no_grad():
            update = self.algorithm.final(params, job.start)
        trained = {name: value.detach() for name, value in params.items()}
        return ClientResult(job.client, trained, update, sums[0], sums[1], int(job.batches.valid.sum()))
