"""What the learners share: evaluation on stored images, the account of time and bytes, and where their numbers go."""

import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from mtl.data.federated_data import FederatedData
from mtl.metrics import Metrics, evaluate_scores
from mtl.types import Diverged

Log = Callable[[int, Metrics], None]


class Learner(LightningModule):
    """One epoch of the Trainer is one round.

    `log_round(round, metrics)` receives the numbers of a round, counted from 1; `run` is the fingerprint that checkpoints carry. The
    validation split is called `val`; where there is none the test images are watched under the name `monitor` and never used to
    choose.
    """

    def __init__(self, data: FederatedData, *, per_task: bool = True) -> None:
        super().__init__()
        self.federated_data = data
        self.per_task = per_task
        self.log_round: Log = lambda round, metrics: None
        self.run = ""
        self.latest: dict[str, float] = {}
        self.account = {"seconds": 0.0, "samples": 0, "bytes_up": 0, "bytes_down": 0}
        self.test_scores: Tensor | None = None
        self.test_metrics: Metrics = {}
        self._clock = 0.0

    def scores(self, index: Tensor) -> Tensor:
        """Decision scores [N, T] of the images at `index`."""
        raise NotImplementedError

    @property
    def watched(self) -> str:
        return "val" if len(self.federated_data.split.val) else "monitor"

    @property
    def chosen_by(self) -> str:
        """The metric that says which round is best."""
        data = self.federated_data
        index = data.split.val if len(data.split.val) else data.split.test
        return f"{self.watched}/rank1" if bool((data.identity[index] >= 0).any()) else f"{self.watched}/auroc"

    def setup(self, stage: str) -> None:
        self.federated_data = self.federated_data.to(self.device)

    def on_train_epoch_start(self) -> None:
        self._clock = time.perf_counter()

    def finish_round(self, positive: Tensor, negative: Tensor, trained: Tensor, learning_rate: float) -> None:
        """Account for the round and log it.

        positive, negative: [T], mean loss per image; trained: bool [T], the subtasks that somebody trained. The others have no loss
        in this round; the totals are the sum over all subtasks, estimated from those that were trained.
        """
        self.account["seconds"] += time.perf_counter() - self._clock
        losses, at_hand = torch.stack([positive, negative]).cpu(), trained.cpu()
        round = self.current_epoch + 1
        if not bool(losses.isfinite().all()):
            raise Diverged(f"the loss is not finite in round {round}; try a lower client.learning_rate")
        metrics: Metrics = {}
        if bool(at_hand.any()):
            total_positive, total_negative = (losses[:, at_hand].mean(1) * len(at_hand)).tolist()
            self.latest |= {"loss": total_positive + total_negative, "positive": total_positive, "negative": total_negative}
            metrics |= {f"train/{name}": self.latest[name] for name in ("loss", "positive", "negative")}
        metrics["train/learning_rate"] = learning_rate
        if self.per_task:
            for t in at_hand.nonzero().flatten().tolist():
                task, pair = self.federated_data.tasks[t], losses[:, t].tolist()
                metrics |= {f"train/{task}/positive": pair[0], f"train/{task}/negative": pair[1]}
        metrics |= {f"fit/{name}": float(value) for name, value in self.account.items() if name != "seconds"}
        self.log_round(round, metrics)

    def validation_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        metrics, _ = self._evaluate(index)
        kept = {f"{self.watched}/{k}": v for k, v in metrics.items() if self.per_task or "/" not in k}
        self.latest |= {k: v for k, v in kept.items() if v is not None and k.count("/") == 1}
        self.log_round(self.current_epoch + 1, kept)
        return None

    def test_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        self.test_metrics, self.test_scores = self._evaluate(index)
        return None

    def _evaluate(self, index: Tensor) -> tuple[Metrics, Tensor]:
        data = self.federated_data
        scores = self.scores(index)
        return evaluate_scores(scores, data.targets[index], data.known[index], data.identity[index], data.tasks), scores.cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["account"] = dict(self.account)
        checkpoint["run"] = self.run

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.account = dict(checkpoint["account"])
