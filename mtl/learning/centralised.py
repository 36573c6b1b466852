"""All data in one place: the same objective by plain SGD, a training step an optimiser step, an epoch as long as a round."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.data.client_batches import LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.federation.balance import OWN, Balance, BalancedLosses, BalancedStep, Batch
from mtl.federation.for_each_client import prepare
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.objective import Objective
from mtl.federation.schedule import Schedule
from mtl.federation.workload import TrainingCost, training_cost
from mtl.learning.learner import Learner
from mtl.losses.pairs import TaskCounts
from mtl.models.hard_sharing import HardSharing
from mtl.types import Diverged, Params


class CentralisedLearning(Learner):
    """`data` holds one client with every training image; `work.steps` steps are one round. What the devices would have to send is
    their images, once: that is its account of bytes. balance: None for the plain sum of the tasks' losses; frozen: by round, the parameters
    that rest in it.
    """

    def __init__(
        self,
        model: HardSharing,
        data: FederatedData,
        objective: Objective,
        client: LocalSGD,
        work: LocalWork,
        schedule: Schedule,
        *,
        num_rounds: int,
        seed: int,
        balance: Balance | None = None,
        best_by: str | None = None,
        per_task: bool = True,
        log_every: int = 1,
        frozen: Callable[[int], frozenset[str]] = lambda round: frozenset(),
    ) -> None:
        super().__init__(data, best_by=best_by, per_task=per_task, log_every=log_every)
        self.frozen = frozen
        self.model, self.objective, self.client, self.work = model.to(memory_format=torch.channels_last), objective, client, work
        self.schedule, self.num_rounds, self.seed = schedule, num_rounds, seed
        self._balanced: BalancedStep | BalancedLosses | None = None
        self.balancer_state: Params = {}
        if balance is not None:
            self._balanced = BalancedStep(balance, self.model, objective, stacked=False)
            self.balancer_state = balance.start(self.model.params(), data.num_tasks)
        image_bytes = data.images[0].numel() * data.images.element_size()
        self.account["bytes_up"] = len(data.split.train) * image_bytes

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
        self._pairs: Tensor | None = None

    def training_step(self, step: Tensor, batch_idx: int) -> Tensor:
        batch = self._batch_of(batch_idx)
        self.model.set_step(batch.keys, batch.valid)
        if self._balanced is not None:
            return self._balance(self._balanced, batch)
        losses = self.objective.losses(self.model, batch.inputs, batch.targets, batch.mask, batch.valid, self._counts)
        self._sums += self.objective.image_sums(losses, batch.valid)
        return losses.tasks.sum()

    def _batch_of(self, step: int) -> Batch:
        data, counts = self.federated_data, self._counts
        rows = prepare(self.objective, self.model, self._batches, slice(step, step + 1), data.assignment.to(self.device), data)
        return Batch(
            inputs=rows.inputs[0].contiguous(memory_format=torch.channels_last),
            targets=rows.targets[0],
            mask=rows.mask[0],
            valid=rows.valid[0],
            keys=rows.keys[0],
            draw_key=rows.draw_keys[0],
            positives=counts.positives,
            negatives=counts.negatives,
            progress=counts.progress,
        )

    def _balance(self, step: BalancedStep | BalancedLosses, batch: Any) -> Tensor:
        own = {name.removeprefix(OWN): value.to(self.device) for name, value in self.balancer_state.items()}
        self._batch, self._found = batch, step.gradients(self._moving(), own, batch)
        self._sums += self._found.sums
        if self._found.pairs is not None:
            self._pairs = self._found.pairs if self._pairs is None else self._pairs + self._found.pairs
        return self._found.sums.sum().requires_grad_()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """A balanced step has its gradients already."""
        if self._balanced is None:
            super().backward(loss, *args, **kwargs)
            return
        for name, parameter in self._moving().items():
            parameter.grad = self._found.grads[name]

    def _moving(self) -> Params:
        """The parameters that train in this round."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Tensor, batch_idx: int) -> None:
        if self._balanced is not None:
            own = self._balanced.observe(dict(self.model.named_parameters()), self._found.own, self._batch)
            self.balancer_state = {OWN + name: value for name, value in own.items()}
        if batch_idx + 1 < len(self._batches.step):
            return
        samples = self.work.num_samples(self.federated_data.clients.size(0))
        self.account["samples"] += samples
        rate = self.client.learning_rate * self.schedule.factor(self.current_epoch, self.num_rounds)
        finite = torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all()
        trained = torch.ones(len(self.loss_names), dtype=torch.bool)
        self.finish_round(
            self._sums / samples, trained, rate, functools.partial(_check, finite, self.current_epoch + 1), self._pairs
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["balancer"] = self.balancer_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.balancer_state = checkpoint["balancer"]

    def training_cost(self) -> TrainingCost:
        return training_cost(
            self.model, self.objective, self.client, self.work, self.federated_data, image_shape=self.image_shape
        )

    def scores(self, index: Tensor) -> Tensor:
        return self.objective.scores(self.model, self.federated_data.images[index])


def _check(finite: Tensor, round: int) -> None:
    if not bool(finite):
        raise Diverged(f"a parameter is not finite after round {round}; try a lower client.learning_rate")
