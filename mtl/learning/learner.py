"""The base of the learners: evaluation on stored images, the account of time and bytes, and logging."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.profiler import record_function

from mtl.base.types import Diverged
from mtl.data.federated_data import FederatedData
from mtl.federation.workload import TrainingCost
from mtl.learning.results import account_key, write_conflict, write_federation, write_predictions
from mtl.metrics.scores import Metrics, evaluate_scores
from mtl.models.cnn import ImageShape
from mtl.models.multi_task_model import MultiTaskModel


@dataclass(frozen=True)
class RoundNumbers:
    """The numbers of a round, on the compute device until they are read.

    Attributes:
        round: counted from 1.
        losses: [2, T], mean positive and negative loss per image.
        trained: bool [T], on the CPU, the subtasks that some client trained.
        learning_rate: of the round.
        account: a copy of the learner's account after the round.
        check: raises `Diverged` where the round went wrong.
        pairs: [3, T, T], see `balance.compare`, or None.
    """

    round: int
    losses: Tensor
    trained: Tensor
    learning_rate: float
    account: dict[str, float]
    check: Callable[[], None]
    pairs: Tensor | None


@dataclass(frozen=True)
class Reporting:
    """What a learner logs, and what the stored images of the run were.

    Args:
        best_by: the validation metric that selects the best round, None for the learner's default.
        per_task: whether losses and metrics are logged for every subtask over the rounds.
        log_every: number of rounds whose numbers are read from the compute device at once.
        image_shape, pixels: of a stored image, where features take the images' place in the data.
    """

    best_by: str | None = None
    per_task: bool = True
    log_every: int = 1
    image_shape: ImageShape | None = None
    pixels: torch.dtype | None = None


DEFAULT = Reporting()


class Learner(LightningModule):
    """One epoch of the Trainer is one round.

    The numbers of a round, counted from 1, go to the Trainer's loggers with the round as the step. Those of `log_every` rounds are read
    from the compute device at once, so that it need not wait for the host. Metrics of the validation split are logged as `val/...`;
    without one, test metrics are logged as `monitor/...` and never used to select a round.

    Args:
        data: what is trained and tested on.
        reporting: what is logged.

    Raises:
        ValueError: `reporting.best_by` is set and there are no validation images.
    """

    model: MultiTaskModel

    def __init__(self, data: FederatedData, reporting: Reporting) -> None:
        super().__init__()
        self.federated_data = data
        self.image_shape, self.pixels = reporting.image_shape or data.image_shape, reporting.pixels or data.images.dtype
        if reporting.best_by is not None and not len(data.split.val):
            raise ValueError(f"best_by={reporting.best_by} needs validation images to choose by, and split leaves none")
        self.best_by, self.per_task, self.log_every = reporting.best_by, reporting.per_task, reporting.log_every
        self.latest: dict[str, float] = {}
        self.evaluated: Metrics = {}  # of the last evaluation over the rounds, without those of single subtasks
        self.account = {"seconds": 0.0, "samples": 0, "bytes_up": 0, "bytes_down": 0}
        self.spans: list[tuple[float, float]] = []
        self._timing: tuple[float, float] | None = None
        self.test_scores: Tensor | None = None
        self.test_metrics: Metrics = {}
        self.pairs: Tensor | None = None  # of the rounds so far; of those up to the tested one once its checkpoint is loaded
        self._unread: list[RoundNumbers] = []
        self._start = 0.0

    def scores(self, index: Tensor) -> Tensor:
        """Return the decision scores [N, T] of the images at `index`."""
        raise NotImplementedError

    def training_cost(self) -> TrainingCost:
        """Count what a training step costs."""
        raise NotImplementedError

    def costs(self) -> dict[str, float]:
        """Return what training has cost, see `TrainingCost.summary`; `flops_total` is of all training steps."""
        costs = self.training_cost().summary(self.federated_data.num_tasks)
        return costs | {"flops_total": costs["flops_training"] * self.account["samples"]}

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the losses of a round."""
        return self.federated_data.tasks

    @property
    def balanced(self) -> tuple[str, ...]:
        """The tasks that a balancer weighs."""
        return self.federated_data.tasks

    @property
    def client_records(self) -> dict[str, list[Any]]:
        """Records with one entry per client, by name: its share of the channels, or its architecture, where they differ."""
        return {}

    @property
    def further_data(self) -> tuple[Tensor, ...]:
        """Data for the fingerprint of the run, in addition to its configuration and images."""
        return ()

    @property
    def monitor_stage(self) -> str:
        """Stage of the metrics logged during training: `val`, or `monitor` (test images) without a validation split."""
        return "val" if len(self.federated_data.split.val) else "monitor"

    @property
    def chosen_by(self) -> str:
        """The metric that selects the best round."""
        return f"{self.monitor_stage}/{self.best_by or self.default_metric}"

    @property
    def default_metric(self) -> str:
        """The metric that selects the best round where `best_by` names none."""
        data = self.federated_data
        index = data.split.val if len(data.split.val) else data.split.test
        return "rank1" if bool((data.identity[index] >= 0).any()) else "auroc"

    def check_choice(self) -> None:
        """Raise ValueError where the metric that selects the best round may be undefined."""
        chosen = self.best_by or self.default_metric
        if chosen not in (names := self.choices()):
            raise ValueError(f"best_by must be one of {', '.join(names)}, got {chosen}")

    def choices(self) -> list[str]:
        """The validation metrics that are defined whatever the scores are."""
        data, tested = self.federated_data, slice(self.federated_data.num_tested)
        index = data.split.val
        targets = data.targets[index, tested]
        truth = (targets, data.known[index, tested], data.identity[index], data.tasks[tested], data.num_exclusive)
        metrics = evaluate_scores(torch.zeros(targets.shape), *truth)
        return [name for name, value in metrics.items() if value is not None and "/" not in name]

    def log_round(self, round: int, metrics: Metrics) -> None:
        """Send the numbers of a round to the Trainer's loggers; undefined ones are left out."""
        defined = {name: value for name, value in metrics.items() if value is not None}
        for logger in self.loggers:
            logger.log_metrics(defined, step=round)

    def write_results(self, run_dir: Path, data: FederatedData) -> None:
        """Write the results of the test, for reports and tables; `data` is divided over the run's clients."""
        write_federation(run_dir, self, data)
        write_predictions(run_dir, self)
        write_conflict(run_dir, self)

    def setup(self, stage: str) -> None:
        """Move the data to the compute device."""
        self.federated_data = self.federated_data.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Start the clock of the round."""
        self._start = time.perf_counter()

    def finish_round(
        self, losses: Tensor, trained: Tensor, learning_rate: float, check: Callable[[], None], pairs: Tensor | None = None
    ) -> None:
        """Account for the round, and log it every `log_every` rounds. Arguments as in `RoundNumbers`."""
        self.spans.append((self._start, time.perf_counter()))
        self.account["seconds"] += self.spans[-1][1] - self._start
        round = self.current_epoch + 1
        self._unread.append(RoundNumbers(round, losses, trained, learning_rate, dict(self.account), check, pairs))
        if pairs is not None:
            self.pairs = pairs if self.pairs is None else self.pairs.to(pairs) + pairs
        if round % self.log_every == 0:
            self.read_rounds()

    def round_seconds(self) -> tuple[float, float] | None:
        """Return the median time of a round, and the share of it that the Trainer and logging take instead of training.

        Returns:
            Seconds from the start of a round to the start of the next, and the share in 0..1, over the rounds of this process. Where it
            trained fewer than two rounds, those of the checkpoint that it resumed from, or None.
        """
        whole = [after[0] - before[0] for before, after in itertools.pairwise(self.spans)]
        if not whole:
            return self._timing
        training = statistics.median(end - start for start, end in self.spans)
        return statistics.median(whole), max(1 - training / statistics.median(whole), 0.0)

    @record_function("mtl/log")
    def read_rounds(self) -> None:
        """Log the rounds that have not been read from the device yet; raises `Diverged` where one went wrong."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        all_losses = torch.stack([numbers.losses for numbers in unread]).cpu()
        for numbers, losses in zip(unread, all_losses, strict=True):
            numbers.check()
            if not bool(losses.isfinite().all()):
                raise Diverged(f"the loss is not finite in round {numbers.round}; try a lower client.learning_rate")
            self.log_round(numbers.round, self._round_metrics(numbers, losses))

    def _round_metrics(self, numbers: RoundNumbers, losses: Tensor) -> Metrics:
        """The metrics of a round.

        Subtasks that no client trained have no loss in this round. The totals are sums over all subtasks, source subtasks included,
        estimated from the trained ones.
        """
        metrics: Metrics = {}
        trained = numbers.trained
        if bool(trained.any()):
            positive, negative = (losses[:, trained].mean(1) * len(trained)).tolist()
            self.latest |= {"loss": positive + negative, "positive": positive, "negative": negative}
            metrics |= {f"train/{name}": self.latest[name] for name in ("loss", "positive", "negative")}
        metrics["train/learning_rate"] = numbers.learning_rate
        if numbers.pairs is not None:
            cosines, against, count = numbers.pairs.sum((1, 2)).tolist()
            metrics |= {"conflict/cosine": cosines / count, "conflict/share": against / count} if count else {}
        if self.per_task:
            data = self.federated_data
            source = range(data.num_tested, data.num_tasks)
            for t in (t for t in trained.nonzero().flatten().tolist() if t not in source):
                task, pair = self.loss_names[t], losses[:, t].tolist()
                metrics |= {f"train/{task}/positive": pair[0], f"train/{task}/negative": pair[1]}
        return metrics | {account_key(name): float(value) for name, value in numbers.account.items() if name != "seconds"}

    def on_validation_start(self) -> None:
        """Log the rounds so far."""
        self.read_rounds()

    def on_train_end(self) -> None:
        """Log the remaining rounds."""
        self.read_rounds()

    def validation_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Log the metrics of the images at `index`."""
        metrics, _ = self._evaluate(index)
        logged = {f"{self.monitor_stage}/{k}": v for k, v in metrics.items() if self.per_task or "/" not in k}
        self.evaluated = {k: v for k, v in metrics.items() if "/" not in k}
        self.latest |= {f"{self.monitor_stage}/{k}": v for k, v in self.evaluated.items() if v is not None}
        self.log_round(self.current_epoch + 1, logged)
        return None

    def test_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        """Store the metrics and the scores of the images at `index`."""
        self.test_metrics, self.test_scores = self._evaluate(index)
        return None

    def _evaluate(self, index: Tensor) -> tuple[Metrics, Tensor]:
        data = self.federated_data
        tested = slice(data.num_tested)
        scores = self.scores(index)[:, tested]
        truth = (data.targets[index, tested], data.known[index, tested], data.identity[index])
        return evaluate_scores(scores, *truth, data.tasks[tested], data.num_exclusive), scores.cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the account, and what the model needs to be built from the configuration."""
        self.read_rounds()
        checkpoint["account"] = dict(self.account)
        checkpoint["timing"] = self.round_seconds()
        checkpoint["pairs"] = self.pairs
        checkpoint["image_shape"] = list(self.image_shape)
        checkpoint["pixels"] = str(self.pixels).removeprefix("torch.")
        checkpoint["tasks"] = list(self.federated_data.tasks)
        checkpoint["num_exclusive"] = self.federated_data.num_exclusive
        checkpoint["num_source"] = self.federated_data.num_source

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the account and the comparison of gradients."""
        self.account = dict(checkpoint["account"])
        self._timing = checkpoint["timing"]
        self.pairs = checkpoint["pairs"]
