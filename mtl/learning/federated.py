"""Federated learning as a LightningModule: a training step is one round. Also `local` learning, where nothing ever travels."""

import functools
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.federation.fleet import FleetSampling
from mtl.federation.inference import Inference
from mtl.federation.message import calibration_bytes, client_bytes
from mtl.federation.personalise import Bank
from mtl.federation.ranks import Ranks
from mtl.federation.rounds import Setting, State, check_health, run_round
from mtl.federation.workload import TrainingCost, training_cost
from mtl.learning.learner import Learner
from mtl.models.hard_sharing import HardSharing
from mtl.models.peers import Peers
from mtl.types import Params


class FederatedLearning(Learner):
    """model: the global model, whose parameters are those of the last finished round; bank: what stays on the clients."""

    def __init__(
        self,
        model: HardSharing,
        setting: Setting,
        inference: Inference,
        bank: Bank,
        *,
        best_by: str | None = None,
        per_task: bool = True,
        log_every: int = 1,
    ) -> None:
        super().__init__(setting.data, best_by=best_by, per_task=per_task, log_every=log_every)
        self.automatic_optimization = False
        self.model, self.setting, self.inference, self.bank = model, setting, inference, bank
        self.server_state = setting.server.init(self._travelling())
        if isinstance(setting.sampling, FleetSampling):
            self.account |= {"modelled_seconds": 0.0, "modelled_joules": 0.0}
        self.account |= dict.fromkeys(self._samples_of_levels(), 0)

    @property
    def further_data(self) -> tuple[Tensor, ...]:
        return () if self.setting.ensemble is None else (self.setting.ensemble.images,)

    def configure_optimizers(self) -> None:
        """The clients have their own optimisers."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.setting = replace(self.setting, data=self.federated_data)
        self.server_state = {name: value.to(self.device) for name, value in self.server_state.items()}

    def training_step(self, round_number: Tensor, batch_idx: int) -> STEP_OUTPUT:
        state, log = run_round(self.setting, self._state(), self.current_epoch)
        self.account["samples"] += log.num_samples
        self.account["bytes_up"] += log.bytes_up
        self.account["bytes_down"] += log.bytes_down
        if self.setting.levels is not None:
            seen = self.setting.levels.samples(log.returned, self.setting.training.work, self.federated_data)
            for name, images in zip(self._samples_of_levels(), seen, strict=True):
                self.account[name] += images
        if isinstance(self.setting.sampling, FleetSampling):
            outcome = self.setting.sampling.outcome(log.round)
            self.account["modelled_seconds"] += outcome.seconds
            self.account["modelled_joules"] += float(outcome.joules.sum())
        self.finish_round(log.losses, log.trained, log.learning_rate, functools.partial(check_health, log), log.pairs)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state.params[name])
        self.server_state = state.server
        return None

    def validation_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        if self.inference.rule == "platt":
            # All clients are sent the model of this round and calibrate their subtasks on it.
            assignment = self.federated_data.assignment
            self.account["bytes_down"] += int(client_bytes(self._travelling(), assignment).sum())
            self.account["bytes_up"] += calibration_bytes(assignment[:, : self.federated_data.num_tested])
        return super().validation_step(index, batch_idx)

    def training_cost(self) -> TrainingCost:
        training, levels = self.setting.training, self.setting.levels
        model = self.model if levels is None else levels.levels[0].model
        return training_cost(
            model, training.objective, training.algorithm, training.work, self.federated_data, image_shape=self.image_shape
        )

    def costs(self) -> dict[str, float]:
        """Those of the server's model, and of each level of width or architecture; flops_total: as the clients trained."""
        costs = super().costs()
        if self.setting.levels is None:
            return costs
        training, total = self.setting.training, 0.0
        for level, samples in zip(self.setting.levels.levels, self._samples_of_levels(), strict=True):
            cost = training_cost(level.model, training.objective, training.algorithm, training.work, self.federated_data)
            own = cost.summary(self.federated_data.num_tasks)
            costs |= {f"{name}_{level.name}": value for name, value in own.items()}
            total += own["flops_training"] * self.account[samples]
        return costs | {"flops_total": total}

    def _samples_of_levels(self) -> list[str]:
        """What the account calls the images that clients of each level see."""
        levels = self.setting.levels
        return [] if levels is None else [f"samples_{level.name}" for level in levels.levels]

    def test_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Of the server's architecture; and the totals of the others."""
        super().test_step(index, batch_idx)
        if isinstance(trunk := self.model.trunk, Peers):
            for name in trunk.names[1:]:
                with trunk.choosing(name):
                    metrics, _ = self._evaluate(index)
                self.test_metrics |= {f"trunk_{name}/{key}": value for key, value in metrics.items() if "/" not in key}
        return None

    def scores(self, index: Tensor) -> Tensor:
        """Each rank scores a part of the images: whole batches of those that one process would score, where scores depend on them."""
        ranks, data = Ranks(), self.federated_data
        place = torch.arange(len(index), device=index.device) // self.inference.images_scored_together
        mine = place % ranks.count == ranks.number
        scores = torch.zeros(len(index), data.num_tasks, device=data.images.device)
        if bool(mine.any()):
            scores[mine] = self.inference.scores(data, self._state(), index[mine], stacked=self.setting.backend.name != "loop")
        ranks.sum([scores])
        return scores

    def _travelling(self) -> Params:
        return {name: value for name, value in self.model.params().items() if not self.bank.stays(name)}

    def _state(self) -> State:
        return State(self.model.params(), self.server_state, self.bank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["server_state"] = self.server_state
        checkpoint["bank"] = self.bank.state_dict()
        checkpoint["backend"] = self.setting.backend.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.server_state = checkpoint["server_state"]
        self.bank.load_state_dict(checkpoint["bank"])
        self.setting.backend.load_state_dict(checkpoint["backend"])
