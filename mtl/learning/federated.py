"""Federated learning as a LightningModule: a training step is one round. Also `local` learning, where nothing ever travels."""

from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.federation.inference import Inference
from mtl.federation.personalise import Bank
from mtl.federation.rounds import Setting, State, run_round
from mtl.learning.learner import Learner
from mtl.models.hard_sharing import HardSharing


class FederatedLearning(Learner):
    """model: the global model, whose parameters are those of the last finished round; keep: what stays on the clients."""

    def __init__(
        self, model: HardSharing, setting: Setting, inference: Inference, *, keep: str = "nothing", per_task: bool = True
    ) -> None:
        super().__init__(setting.data, per_task=per_task)
        self.automatic_optimization = False
        self.model, self.setting, self.inference = model, setting, inference
        bank = Bank(keep, model.params(), setting.data.assignment)
        travelling = {name: value for name, value in model.params().items() if not bank.stays(name)}
        self.server_state, self.bank = setting.server.init(travelling), bank

    def configure_optimizers(self) -> None:
        """The clients have their own optimisers."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.setting = replace(self.setting, data=self.federated_data)
        self.server_state = {name: value.to(self.device) for name, value in self.server_state.items()}
        self.bank.to(self.device)

    def training_step(self, round_number: Tensor, batch_idx: int) -> STEP_OUTPUT:
        state, log = run_round(self.setting, self._state(), self.current_epoch)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state.params[name])
        self.server_state, self.bank = state.server, state.bank
        self.account["samples"] += log.num_samples
        self.account["bytes_up"] += log.bytes_up
        self.account["bytes_down"] += log.bytes_down
        self.finish_round(log.positive, log.negative, log.trained, log.learning_rate)
        return None

    def scores(self, index: Tensor) -> Tensor:
        return self.inference.scores(self.federated_data, self._state(), index)

    def _state(self) -> State:
        return State(self.model.params(), self.server_state, self.bank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["server_state"] = self.server_state
        checkpoint["bank"] = self.bank.values

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.server_state = checkpoint["server_state"]
        self.bank.values = checkpoint["bank"]
