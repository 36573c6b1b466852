"""Federated learning as a LightningModule: a training step is one round. Also `local` learning, where nothing is sent."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.data.federated_data import FederatedData
from mtl.federation.clients.bank import Bank
from mtl.federation.inference import Inference
from mtl.federation.message import calibration_bytes, client_bytes
from mtl.federation.ranks import Ranks
from mtl.federation.round import Federation, State, check_health, run_round
from mtl.federation.workload import TrainingCost, training_cost
from mtl.learning.checkpoints import CheckpointError
from mtl.learning.clients import ClientResults, ClientTest
from mtl.learning.learner import DEFAULT, Learner, Reporting
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.peers import Peers

NO_TEST = ClientTest()


class FederatedLearning(Learner):
    """Federated rounds on simulated clients.

    Args:
        model: the global model, with the parameters of the last finished round.
        federation: clients, server and schedule.
        inference: how the heads' logits become scores.
        bank: the clients' state between rounds.
        reporting: what is logged.
        client_test: how single clients are tested.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        federation: Federation,
        inference: Inference,
        bank: Bank,
        *,
        reporting: Reporting = DEFAULT,
        client_test: ClientTest = NO_TEST,
    ) -> None:
        super().__init__(federation.data, reporting)
        self.automatic_optimization = False
        self.model, self.federation, self.inference, self.bank = model, federation, inference, bank
        self.client_test, self.client_results = client_test, ClientResults([], [], {})
        self.server_state = _without_params(federation.server.init(model.params(), federation.layout))
        self.versions: dict[int, Params] = {}
        if federation.population.sampling.modelled:
            self.account |= {"modelled_seconds": 0.0, "modelled_joules": 0.0}
        self.account |= dict.fromkeys(federation.population.views.account_names, 0)
        client, server = federation.training.client, federation.server.algorithm
        self.account |= dict.fromkeys([f"bytes_up_{slot}" for slot in client.sends], 0)
        self.account |= dict.fromkeys([f"bytes_down_{slot}" for slot in server.sends], 0)

    @property
    def client_records(self) -> dict[str, list[Any]]:
        """See `Learner`."""
        return self.federation.population.views.client_records

    @property
    def further_data(self) -> tuple[Tensor, ...]:
        """The images that the server trains on, for the fingerprint of the run."""
        return tuple(images for step in self.federation.server.steps for images in step.data)

    def configure_optimizers(self) -> None:
        """Return no optimiser: the clients have theirs."""

    def setup(self, stage: str) -> None:
        """Move the data and the state of the server to the compute device."""
        super().setup(stage)
        self.federation = replace(self.federation, data=self.federated_data)
        self.server_state = {
            slot: {name: value.to(self.device) for name, value in values.items()} for slot, values in self.server_state.items()
        }
        self.versions = {
            round: {name: value.to(self.device) for name, value in params.items()} for round, params in self.versions.items()
        }

    def training_step(self, round_number: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Run one round."""
        state, log = run_round(self.federation, self._state(), self.current_epoch)
        self.account["samples"] += log.num_samples
        self.account["bytes_up"] += log.bytes_up
        self.account["bytes_down"] += log.bytes_down
        for way, slots in (("up", log.up), ("down", log.down)):
            for slot in slots.keys() - {"params"}:
                self.account[f"bytes_{way}_{slot}"] += slots[slot]
        for name, images in log.samples_of_views.items():
            self.account[name] += images
        if self.federation.population.sampling.modelled:
            self.account["modelled_seconds"] += log.cohort.seconds
            self.account["modelled_joules"] += log.cohort.joules
        check = functools.partial(check_health, log)
        self.finish_round(log.losses, log.trained, log.learning_rate, check, log.extra.get("conflict"))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state.params[name])
        self.server_state, self.versions = _without_params(state.server), state.versions
        return None

    def validation_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """See `Learner`; the bytes of Platt's calibration are counted."""
        if self.inference.rule == "platt":
            # All clients are sent the model of this round and calibrate their subtasks on it.
            assignment = self.federated_data.assignment
            self.account["bytes_down"] += int(client_bytes(self.federation.layout.sent(self.model.params()), assignment).sum())
            self.account["bytes_up"] += calibration_bytes(assignment[:, : self.federated_data.num_tested])
        return super().validation_step(index, batch_idx)

    def training_cost(self) -> TrainingCost:
        """See `Learner`; where the clients' models differ, the cost of the first level."""
        training, views = self.federation.training, self.federation.population.views
        model = self.model if views.all_whole else views.levels[0].model
        return training_cost(
            model,
            training.objective,
            training.optimizer,
            training.work,
            self.federated_data,
            client=training.client,
            image_shape=self.image_shape,
        )

    def costs(self) -> dict[str, float]:
        """See `Learner`; with the costs of each width or architecture. `flops_total` counts each client at its level."""
        costs, views = super().costs(), self.federation.population.views
        if views.all_whole:
            return costs
        training, total = self.federation.training, 0.0
        for level, samples in zip(views.levels, views.account_names, strict=True):
            cost = training_cost(
                level.model, training.objective, training.optimizer, training.work, self.federated_data, client=training.client
            )
            summary = cost.summary(self.federated_data.num_tasks)
            costs |= {f"{name}_{level.name}": value for name, value in summary.items()}
            total += summary["flops_training"] * self.account[samples]
        return costs | {"flops_total": total}

    def test_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Test the server's architecture; of the others only metrics over all subtasks are recorded. Then test single clients."""
        super().test_step(index, batch_idx)
        assert self.test_scores is not None
        self.client_results = self.client_test.run(self.federation, self._state(), self.inference, self.test_scores)
        self.test_metrics |= self.client_results.metrics()
        if isinstance(trunk := self.model.trunk, Peers):
            for name in trunk.names[1:]:
                with trunk.choosing(name):
                    metrics, _ = self._evaluate(index)
                self.test_metrics |= {f"trunk_{name}/{key}": value for key, value in metrics.items() if "/" not in key}
        return None

    def scores(self, index: Tensor) -> Tensor:
        """See `Learner`; each rank scores a share of the batches that one process would score."""
        ranks, data = Ranks(), self.federated_data
        place = torch.arange(len(index), device=index.device) // self.inference.images_scored_together
        mine = place % ranks.count == ranks.number
        scores = torch.zeros(len(index), data.num_tasks, device=data.images.device)
        if bool(mine.any()):
            scores[mine] = self.inference.scores(data, self._state(), index[mine], stacked=self.federation.backend.name != "loop")
        ranks.sum([scores])
        return scores

    def write_results(self, run_dir: Path, data: FederatedData) -> None:
        """Write the results of the test, those of single clients, and the devices of the fleet."""
        super().write_results(run_dir, data)
        self.client_results.write(run_dir, data)
        population = self.federation.population
        population.sampling.write(run_dir, data.clients.sizes, population.views.widths)

    def _state(self) -> State:
        return State({"params": self.model.params()} | self.server_state, self.bank, self.versions)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the server, the clients and the backend."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["server_state"] = self.server_state
        checkpoint["versions"] = self.versions
        checkpoint["bank"] = self.bank.state_dict()
        checkpoint["kept"] = {"keep": self.bank.layout.keep, "answers": self.federation.training.client.answers}
        checkpoint["backend"] = self.federation.backend.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the server, the clients and the backend; raises `CheckpointError` where slots differ."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["server_state"].keys() != self.server_state.keys():
            raise CheckpointError(
                f"a checkpoint must hold the server's slots {', '.join(self.server_state)}, got "
                f"{', '.join(checkpoint['server_state']) or 'none'}: another algorithm or an earlier version of mtl wrote it; train again"
            )
        self.server_state, self.versions = checkpoint["server_state"], checkpoint["versions"]
        try:
            self.bank.load_state_dict(checkpoint["bank"])
        except ValueError as error:
            raise CheckpointError(f"the checkpoint is of another algorithm or mode: {error}") from error
        self.federation.backend.load_state_dict(checkpoint["backend"])


def _without_params(server: Slots) -> Slots:
    """The server's slots except the parameters of the global model, which the module has."""
    return {slot: values for slot, values in server.items() if slot != "params"}
