"""The test of single clients: how well the global, the personal and the fine-tuned model answer on each client's own test images.

    global       the scores that the federation is tested by: of the global model, or fused from the clients' models where parts stay there
    personal     of the model that answers for the client; of one that has never trained, the global scores
    finetuned    of that model after the local steps of `FineTuning`

All three are tested on the same images, see `own_images`. `summary.json` has `test/<model>/accuracy`, that of the worst tenth of the
clients and that of the worst; `clients.csv` has a row for each client.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mtl.base.files import atomic_write
from mtl.data.federated_data import FederatedData
from mtl.data.own_images import own_test_images
from mtl.data.ragged import Ragged
from mtl.federation.algorithms.algorithm import FineTuning
from mtl.federation.client_models import Models, personal_models, tuned_models
from mtl.federation.inference import Inference
from mtl.federation.ranks import Ranks
from mtl.federation.round import Federation, State, no_autocast_cache
from mtl.metrics.clients import client_accuracy, summarise_clients
from mtl.metrics.scores import Metrics


@dataclass(frozen=True)
class ClientResults:
    """The test of single clients.

    Attributes:
        num_images: own test images of each client, C numbers.
        own: the clients on which a part of the model stays, or a model of their own; none before they first train.
        accuracy: float64 [C] by the name of the model; NaN where a client has no image that counts. Empty where nothing was tested.
    """

    num_images: list[int]
    own: list[int]
    accuracy: dict[str, Tensor]

    def metrics(self) -> Metrics:
        """Return `<model>/accuracy` and the worst clients'."""
        return {f"{model}/{name}": value for model, of in self.accuracy.items() for name, value in summarise_clients(of).items()}

    def write(self, run_dir: Path, data: FederatedData) -> None:
        """Write `clients.csv`, a row for each client."""
        if not self.accuracy:
            return
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(
            ["client", "images", "subtasks", "own_model", "test_images", *(f"{model}_accuracy" for model in self.accuracy)]
        )
        subtasks = data.assignment[:, : data.num_tested].sum(1).tolist()
        values = zip(*(of.tolist() for of in self.accuracy.values()), strict=True)
        own = torch.zeros(data.num_clients, dtype=torch.long).index_fill(0, torch.tensor(self.own, dtype=torch.long), 1)
        columns = zip(data.clients.sizes, subtasks, own.tolist(), self.num_images, values, strict=True)
        for client, (*counts, accuracies) in enumerate(columns):
            rows.writerow([client, *counts, *("" if value != value else repr(value) for value in accuracies)])
        with atomic_write(run_dir / "clients.csv") as file:
            file.write(text.getvalue().encode())


@dataclass(frozen=True)
class ClientTest:
    """How single clients are tested.

    Args:
        tuning: local steps before the test.
        seed: of the run, for the choice of the own images.
        active: whether clients are tested one by one at all.
    """

    tuning: FineTuning = field(default_factory=FineTuning)
    seed: int = 0
    active: bool = False

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, fed: Federation, state: State, inference: Inference, scores: Tensor) -> ClientResults:
        """Test each client's models on its own test images; the ranks share the clients. Nothing where the global model alone answers.

        Args:
            fed: the federation, with its data on the compute device.
            state: of the tested round.
            inference: scores images.
            scores: [N, T], of all test images by the federation, without source subtasks.
        """
        keeps = fed.layout.keep != "nothing" or fed.training.client.answers != "params"
        if not self.active or not (keeps or self.tuning.steps):
            return ClientResults([], [], {})
        own = own_test_images(fed.data, self.seed)
        judge, trained = _Judge(fed, inference, own, scores), state.bank.trained()
        accuracy = {"global": judge.accuracy(judge.scores)}
        if keeps:
            accuracy["personal"] = judge.test(
                trained, lambda clients: personal_models(fed, state, clients, stacked=judge.stacked)
            )
        if self.tuning.steps:
            everybody = list(range(fed.data.num_clients))
            with no_autocast_cache():
                accuracy["finetuned"] = judge.test(
                    everybody, lambda clients: tuned_models(fed, state, clients, self.tuning, stacked=judge.stacked)
                )
        return ClientResults(own.sizes, trained, accuracy)


class _Judge:
    """The accuracy of models on the clients' own test images.

    Args:
        fed: the federation.
        inference: scores images.
        own: positions of each client's own images among the test images.
        scores: [N, T], of all test images by the federation.
    """

    def __init__(self, fed: Federation, inference: Inference, own: Ragged, scores: Tensor) -> None:
        self.data, self.inference, self.own = fed.data, inference, own
        self.stacked = fed.backend.name not in ("loop", "auto")  # auto: no client ever came back
        self.scores = scores.cpu()[own.values]
        self.owner = torch.arange(len(own)).repeat_interleave(torch.tensor(own.sizes))

    def accuracy(self, scores: Tensor) -> Tensor:
        """Return the accuracy of each client, float64 [C], from the scores [R, T] of all own images."""
        data, tested = self.data, slice(self.data.num_tested)
        index = data.split.test.cpu()[self.own.values]
        truth = (data.targets.cpu()[index, tested], data.known.cpu()[index, tested], data.identity.cpu()[index])
        return client_accuracy(scores, *truth, self.owner, data.assignment.cpu()[:, tested], data.num_exclusive)

    def test(self, clients: Sequence[int], models: Callable[[list[int]], Models]) -> Tensor:
        """Return the accuracy of each client [C]: some clients answer with models of their own, the others with the global scores."""
        ranks, answering = Ranks(), [client for client in clients if self.own.size(client)]
        found = torch.zeros(self.scores.shape, device=self.data.images.device)
        mine = answering[ranks.number :: ranks.count]
        for block, params in models(mine):
            index = [self.data.split.test[self.own[client].to(found.device)] for client in block]
            scored = self.inference.own_scores(params, self.data.images, index, stacked=self.stacked)
            for client, scores in zip(block, scored, strict=True):
                found[self.own.starts[client] : self.own.starts[client + 1]] = scores[:, : found.shape[1]]
        ranks.sum([found])
        answered = torch.zeros(len(self.own), dtype=torch.bool)
        answered[answering] = True
        return self.accuracy(torch.where(answered[self.owner, None], found.cpu(), self.scores))
