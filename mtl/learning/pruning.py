"""Pruning of weights while they are trained: what has become zero stays zero."""

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.base.types import Params
from mtl.edge.prune import Pruning, prunable, zero_smallest
from mtl.models.multi_task_model import MultiTaskModel


class PruneWeights(Callback):
    """Zeroes the smallest weights at the start of a round, as many as `pruning` says of it, and again after every training step: an
    optimiser step, or a federated round, within which the clients are free.

    What was zero is smallest, so a resumed run needs no masks: it finds those that it had.
    """

    def __init__(self, pruning: Pruning, model: MultiTaskModel, *, num_rounds: int) -> None:
        self.pruning, self.weights, self.num_rounds = pruning, prunable(model), num_rounds
        self._masks: Params = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ratio = self.pruning.ratio_at((trainer.current_epoch + 1) / self.num_rounds)
        self._masks = zero_smallest(self.weights, ratio, scope=self.pruning.scope)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Tensor, batch_idx: int
    ) -> None:
        for name, weight in self.weights.items():
            weight.mul_(self._masks[name])
