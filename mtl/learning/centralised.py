"""All data in one place: the same objective and the same local step as a client's; an epoch is as long as a round."""

import functools
from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.base.types import Diverged
from mtl.data.client_batches import plan_batches
from mtl.data.federated_data import FederatedData
from mtl.federation.clients.batches import Batch, prepare
from mtl.federation.clients.contract import Training, add_conflict, memory_on
from mtl.federation.clients.gradients import State, Step
from mtl.federation.layout import Frozen, never_frozen, split_frozen
from mtl.federation.schedule import Schedule
from mtl.federation.workload import TrainingCost, training_cost
from mtl.learning.checkpoints import CheckpointError
from mtl.learning.learner import DEFAULT, Learner, Reporting
from mtl.losses.pairs import TaskCounts


class CentralisedLearning(Learner):
    """Training on one client that has every training image.

    The bytes in its account are those of the training images, which the devices would have to send once.

    Args:
        training: the local step; `training.work.steps` of them are one round.
        data: of one client.
        schedule: factor of the learning rate, by round.
        num_rounds: length of the schedule.
        frozen: the names of the parameters that are frozen in a round.
        reporting: what is logged.
    """

    def __init__(
        self,
        training: Training,
        data: FederatedData,
        schedule: Schedule,
        *,
        num_rounds: int,
        frozen: Frozen = never_frozen,
        reporting: Reporting = DEFAULT,
    ) -> None:
        super().__init__(data, reporting)
        self.automatic_optimization = False
        self.training_options, self.frozen, self.schedule, self.num_rounds = training, frozen, schedule, num_rounds
        self.model = training.model.to(memory_format=torch.channels_last)
        self.objective, self.optimizer, self.work = training.objective, training.optimizer, training.work
        self.step = self.make_step()
        params = self.model.params()
        self.optimizer_state = self.optimizer.init(params)
        self.memory: State = training.rule.memory(params, len(self.balanced))
        image_bytes = data.images[0].numel() * data.images.element_size()
        self.account["bytes_up"] = len(data.split.train) * image_bytes

    def make_step(self) -> Step:
        """Build the local step on a batch of `batch_of`."""
        return self.training_options.rule.step(self.model, self.objective, stacked=False)

    def configure_optimizers(self) -> None:
        """Return no optimiser: the clients' optimiser makes the local step, as in a federation."""

    def setup(self, stage: str) -> None:
        """Move the data and the state of the optimiser and the balancer to the compute device."""
        super().setup(stage)
        self.optimizer_state, self.memory = memory_on(self.device, self.optimizer_state), memory_on(self.device, self.memory)

    def on_train_epoch_start(self) -> None:
        """Freeze the parameters of the round and plan its batches."""
        super().on_train_epoch_start()
        round, data = self.current_epoch, self.federated_data
        frozen = self.frozen(round)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.moving, _ = split_frozen(dict(self.model.named_parameters()), frozen)
        self._batches = plan_batches(data.clients, [0], self.work, seed=self.training_options.seed, round=round)
        progress = torch.tensor([round / self.num_rounds], device=self.device)
        self._counts = TaskCounts(data.positives.to(progress), data.negatives.to(progress), progress)
        self._learning_rate = self.optimizer.learning_rate * self.schedule.factor(round, self.num_rounds)
        self._rate = torch.tensor(self._learning_rate, device=self.device)
        self._sums = torch.zeros(2, len(self.loss_names), device=self.device)
        self._conflict: Tensor | None = None

    def training_step(self, step: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Make the local step `batch_idx` of the round."""
        batch = self.batch_of(batch_idx)
        result = self.step.gradients(self.moving, self.memory, batch, {})
        self._sums += result.losses
        self._conflict = add_conflict(self._conflict, result.conflict)
        self.optimizer.step(self.moving, result.grads, self.optimizer_state, self._rate)
        self.memory = self.step.observe(self.moving, result.memory, batch)
        return None

    def batch_of(self, step: int) -> Any:
        """Return the batch of a step of this round."""
        data = self.federated_data
        tasks, rows = data.assignment.to(self.device), slice(step, step + 1)
        batch = prepare(self.objective, self.model, self._batches, rows, tasks, self._counts, data)[0]
        return Batch(batch.inputs.contiguous(memory_format=torch.channels_last), *batch.tensors()[1:])

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Tensor, batch_idx: int) -> None:
        """Finish the round after its last step."""
        if batch_idx + 1 < len(self._batches.step):
            return
        samples = self.work.num_samples(self.federated_data.clients.size(0))
        self.account["samples"] += samples
        finite = torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all()
        trained = torch.ones(len(self.loss_names), dtype=torch.bool)
        check = functools.partial(_check, finite, self.current_epoch + 1)
        self.finish_round(self._sums / samples, trained, self._learning_rate, check, self._conflict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the optimiser and of the balancer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["optimizer_state"], checkpoint["balancer"] = self.optimizer_state, self.memory

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the optimiser and of the balancer; raises `CheckpointError` where it is missing."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("optimizer_state", {}).keys() != self.optimizer_state.keys():
            raise CheckpointError(
                "a checkpoint must hold the state of the client's optimiser, got that of another or none: an earlier version of mtl "
                "wrote it; train again"
            )
        self.optimizer_state = memory_on(self.device, checkpoint["optimizer_state"])
        self.memory = memory_on(self.device, checkpoint["balancer"])

    def training_cost(self) -> TrainingCost:
        """See `Learner`."""
        return training_cost(
            self.model, self.objective, self.optimizer, self.work, self.federated_data, image_shape=self.image_shape
        )

    def scores(self, index: Tensor) -> Tensor:
        """See `Learner`."""
        return self.objective.scores(self.model, self.federated_data.images[index])


def _check(finite: Tensor, round: int) -> None:
    if not bool(finite):
        raise Diverged(f"a parameter is not finite after round {round}; try a lower client.learning_rate")
