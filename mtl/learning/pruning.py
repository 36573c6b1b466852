"""Pruning of weights during training: a weight that was set to zero stays zero."""

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.base.types import Params
from mtl.edge.prune import Pruning, prunable, zero_smallest
from mtl.models.multi_task_model import MultiTaskModel


class PruneWeights(Callback):
    """Sets the smallest weights to zero at the start of a round, and the same weights again after every training step.

    A training step is an optimiser step, or a federated round; within it the clients may change these weights. A resumed run needs no
    stored masks: the weights that were zero are again the smallest.

    Args:
        pruning: the share of weights by round.
        model: whose weights are pruned in place.
        num_rounds: of the run.
    """

    def __init__(self, pruning: Pruning, model: MultiTaskModel, *, num_rounds: int) -> None:
        self.pruning, self.weights, self.num_rounds = pruning, prunable(model), num_rounds
        self._masks: Params = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the weights of this round, and set them to zero."""
        ratio = self.pruning.ratio_at((trainer.current_epoch + 1) / self.num_rounds)
        self._masks = zero_smallest(self.weights, ratio, scope=self.pruning.scope)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Tensor, batch_idx: int
    ) -> None:
        """Set the weights of this round to zero."""
        for name, weight in self.weights.items():
            weight.mul_(self._masks[name])
