"""All data in one place: the same objective by plain SGD, a training step an optimiser step, an epoch as long as a round."""

import functools
from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.base.types import Diverged, Params
from mtl.data.client_batches import plan_batches
from mtl.data.federated_data import FederatedData
from mtl.federation.clients.batches import Batch, prepare
from mtl.federation.clients.contract import Training, add_conflict, memory_on
from mtl.federation.clients.gradients import PlainSum, State, Step
from mtl.federation.layout import Frozen, never_frozen
from mtl.federation.schedule import Schedule
from mtl.federation.workload import TrainingCost, training_cost
from mtl.learning.learner import DEFAULT, Learner, Reporting
from mtl.losses.pairs import TaskCounts


class CentralisedLearning(Learner):
    """`data` holds one client with every training image; `training.work.steps` steps are one round. What the devices would have to send is
    their images, once: that is its account of bytes.

    Args:
        frozen: by round, the parameters that rest in it.
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
        self.frozen, self.schedule, self.num_rounds = frozen, schedule, num_rounds
        self.model = training.model.to(memory_format=torch.channels_last)
        self.objective, self.client, self.work = training.objective, training.algorithm, training.work
        self.rule, self.seed = training.rule, training.seed
        self._step = self._make_step()
        self.memory: State = self.rule.memory(self.model.params(), len(self.balanced))
        image_bytes = data.images[0].numel() * data.images.element_size()
        self.account["bytes_up"] = len(data.split.train) * image_bytes

    def _make_step(self) -> Step:
        return self.rule.step(self.model, self.objective, stacked=False)

    def configure_optimizers(self) -> Any:
        params = dict(self.model.named_parameters())
        groups = [
            {"params": [params[name] for name in names], "lr": self.client.learning_rate * scale}
            for scale, names in self.client.groups(params).items()
        ]
        optimizer = self.optimizer(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda round: self.schedule.factor(round, self.num_rounds))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.client.momentum, weight_decay=self.client.weight_decay)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        frozen = self.frozen(self.current_epoch)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        data = self.federated_data
        self._batches = plan_batches(data.clients, [0], self.work, seed=self.seed, round=self.current_epoch)
        progress = torch.tensor(self.current_epoch / self.num_rounds, device=self.device)
        self._counts = TaskCounts(data.positives[0].to(progress), data.negatives[0].to(progress), progress)
        self._sums = torch.zeros(2, len(self.loss_names), device=self.device)
        self._conflict: Tensor | None = None

    def training_step(self, step: Tensor, batch_idx: int) -> Tensor:
        batch = self._batch_of(batch_idx)
        if not isinstance(self.rule, PlainSum):
            return self._balance(batch)
        self.model.set_step(batch.keys, batch.valid)
        losses = self.objective.losses(self.model, batch.inputs, batch.targets, batch.mask, batch.valid, self._counts)
        self._sums += self.objective.image_sums(losses, batch.valid)
        return losses.tasks.sum()

    def _batch_of(self, step: int) -> Batch:
        data, counts = self.federated_data, self._counts
        of_clients = TaskCounts(counts.positives[None], counts.negatives[None], counts.progress[None])
        tasks = data.assignment.to(self.device)
        batch = prepare(self.objective, self.model, self._batches, slice(step, step + 1), tasks, of_clients, data)[0]
        return Batch(batch.inputs.contiguous(memory_format=torch.channels_last), *batch.tensors()[1:])

    def _balance(self, batch: Any) -> Tensor:
        memory = memory_on(self.device, self.memory)
        self._batch, self._found = batch, self._step.gradients(self._moving(), memory, batch, {})
        self._sums += self._found.losses
        self._conflict = add_conflict(self._conflict, self._found.conflict)
        return self._found.losses.sum().requires_grad_()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """A balanced step has its gradients already."""
        if isinstance(self.rule, PlainSum):
            super().backward(loss, *args, **kwargs)
            return
        for name, parameter in self._moving().items():
            parameter.grad = self._found.grads[name]

    def _moving(self) -> Params:
        """The parameters that train in this round."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Tensor, batch_idx: int) -> None:
        if not isinstance(self.rule, PlainSum):
            self.memory = self._step.observe(dict(self.model.named_parameters()), self._found.memory, self._batch)
        if batch_idx + 1 < len(self._batches.step):
            return
        samples = self.work.num_samples(self.federated_data.clients.size(0))
        self.account["samples"] += samples
        rate = self.client.learning_rate * self.schedule.factor(self.current_epoch, self.num_rounds)
        finite = torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all()
        trained = torch.ones(len(self.loss_names), dtype=torch.bool)
        self.finish_round(
            self._sums / samples, trained, rate, functools.partial(_check, finite, self.current_epoch + 1), self._conflict
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["balancer"] = self.memory

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.memory = checkpoint["balancer"]

    def training_cost(self) -> TrainingCost:
        return training_cost(
            self.model, self.objective, self.client, self.work, self.federated_data, image_shape=self.image_shape
        )

    def scores(self, index: Tensor) -> Tensor:
        return self.objective.scores(self.model, self.federated_data.images[index])


def _check(finite: Tensor, round: int) -> None:
    if not bool(finite):
        raise Diverged(f"a parameter is not finite after round {round}; try a lower client.learning_rate")
