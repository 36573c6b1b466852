"""What the learners share: evaluation on stored images, the account of time and bytes, and where their numbers go."""

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
    """What a round gave, on the compute device until it is read. losses: [2, T], mean positive and negative loss per image;
    trained: bool [T], on the CPU, the subtasks that somebody trained; check: raises where the round went wrong; pairs: [3, T, T], see
    `balance.compare`, or None.
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
        best_by: the validation metric that says which round is best, None for the learner's own.
        per_task: whether losses and metrics are logged for every subtask over the rounds.
        log_every: the numbers of that many rounds are read from the compute device at once.
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
    from the compute device at once, so that it need not wait for the host. The validation split is called `val`; without one, test
    metrics are logged as `monitor/...` and never used to select a round. best_by: the validation metric that says which round is best,
    None for `judged_by`.
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
        """Decision scores [N, T] of the images at `index`."""
        raise NotImplementedError

    def training_cost(self) -> TrainingCost:
        """What a training step costs, counted when asked."""
        raise NotImplementedError

    def costs(self) -> dict[str, float]:
        """What training has cost, see `TrainingCost.summary`; flops_total: of all training steps."""
        costs = self.training_cost().summary(self.federated_data.num_tasks)
        return costs | {"flops_total": costs["flops_training"] * self.account["samples"]}

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What the losses of a round are of."""
        return self.federated_data.tasks

    @property
    def balanced(self) -> tuple[str, ...]:
        """The tasks that a balancer weighs."""
        return self.federated_data.tasks

    @property
    def client_records(self) -> dict[str, list[Any]]:
        """What is recorded of each client, by name: the share of the channels, or the architecture, where they differ."""
        return {}

    @property
    def further_data(self) -> tuple[Tensor, ...]:
        """What a run is of, beside its configuration and its images."""
        return ()

    @property
    def watched(self) -> str:
        return "val" if len(self.federated_data.split.val) else "monitor"

    @property
    def chosen_by(self) -> str:
        """The metric that says which round is best."""
        return f"{self.watched}/{self.best_by or self.judged_by}"

    @property
    def judged_by(self) -> str:
        """The metric that says most, of those that a run has."""
        data = self.federated_data
        index = data.split.val if len(data.split.val) else data.split.test
        return "rank1" if bool((data.identity[index] >= 0).any()) else "auroc"

    def check_choice(self) -> None:
        """Raises ValueError where the metric that is to say which round is best is not one that every evaluation has."""
        chosen = self.best_by or self.judged_by
        if chosen not in (names := self.choices()):
            raise ValueError(f"best_by must be one of {', '.join(names)}, got {chosen}")

    def choices(self) -> list[str]:
        """The validation metrics that every evaluation has, whatever the scores are."""
        data, own = self.federated_data, slice(self.federated_data.num_tested)
        index = data.split.val
        targets = data.targets[index, own]
        truth = (targets, data.known[index, own], data.identity[index], data.tasks[own], data.num_exclusive)
        metrics = evaluate_scores(torch.zeros(targets.shape), *truth)
        return [name for name, value in metrics.items() if value is not None and "/" not in name]

    def log_round(self, round: int, metrics: Metrics) -> None:
        """Give the numbers of a round to the Trainer's loggers; undefined ones are left out."""
        defined = {name: value for name, value in metrics.items() if value is not None}
        for logger in self.loggers:
            logger.log_metrics(defined, step=round)

    def write_results(self, run_dir: Path, data: FederatedData) -> None:
        """Write what is known after the test, for reports and tables. data: of the run, over its clients."""
        write_federation(run_dir, self, data)
        write_predictions(run_dir, self)
        write_conflict(run_dir, self)

    def setup(self, stage: str) -> None:
        self.federated_data = self.federated_data.to(self.device)

    def on_train_epoch_start(self) -> None:
        self._start = time.perf_counter()

    def finish_round(
        self, losses: Tensor, trained: Tensor, learning_rate: float, check: Callable[[], None], pairs: Tensor | None = None
    ) -> None:
        """Account for the round; its numbers are logged when the time has come. See `RoundNumbers`."""
        self.spans.append((self._start, time.perf_counter()))
        self.account["seconds"] += self.spans[-1][1] - self._start
        round = self.current_epoch + 1
        self._unread.append(RoundNumbers(round, losses, trained, learning_rate, dict(self.account), check, pairs))
        if pairs is not None:
            self.pairs = pairs if self.pairs is None else self.pairs.to(pairs) + pairs
        if round % self.log_every == 0:
            self.read_rounds()

    def round_seconds(self) -> tuple[float, float] | None:
        """A round from its start to the start of the next, and the share of it that is not training but the Trainer and logging;
        medians over the rounds of this process; where it made but one, those of the process that it goes on from, or None.
        """
        whole = [after[0] - before[0] for before, after in itertools.pairwise(self.spans)]
        if not whole:
            return self._timing
        training = statistics.median(end - start for start, end in self.spans)
        return statistics.median(whole), max(1 - training / statistics.median(whole), 0.0)

    @record_function("mtl/log")
    def read_rounds(self) -> None:
        """Log the rounds that have not been read from the device yet. Raises `Diverged` where one went wrong."""
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
        """Subtasks that nobody trained have no loss in this round; the totals are the sum over all subtasks, those of a source among them,
        estimated from the others.
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
        self.read_rounds()

    def on_train_end(self) -> None:
        self.read_rounds()

    def validation_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        metrics, _ = self._evaluate(index)
        kept = {f"{self.watched}/{k}": v for k, v in metrics.items() if self.per_task or "/" not in k}
        self.evaluated = {k: v for k, v in metrics.items() if "/" not in k}
        self.latest |= {f"{self.watched}/{k}": v for k, v in self.evaluated.items() if v is not None}
        self.log_round(self.current_epoch + 1, kept)
        return None

    def test_step(self, index: Tensor, batch_idx: int) -> STEP_OUTPUT:
        self.test_metrics, self.test_scores = self._evaluate(index)
        return None

    def _evaluate(self, index: Tensor) -> tuple[Metrics, Tensor]:
        data = self.federated_data
        own = slice(data.num_tested)
        scores = self.scores(index)[:, own]
        truth = (data.targets[index, own], data.known[index, own], data.identity[index])
        return evaluate_scores(scores, *truth, data.tasks[own], data.num_exclusive), scores.cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.read_rounds()
        checkpoint["account"] = dict(self.account)
        checkpoint["timing"] = self.round_seconds()
        checkpoint["pairs"] = self.pairs
        # What the model of this run is built for, beside its configuration.
        checkpoint["image_shape"] = list(self.image_shape)
        checkpoint["pixels"] = str(self.pixels).removeprefix("torch.")
        checkpoint["tasks"] = list(self.federated_data.tasks)
        checkpoint["num_exclusive"] = self.federated_data.num_exclusive
        checkpoint["num_source"] = self.federated_data.num_source

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.account = dict(checkpoint["account"])
        self._timing = checkpoint["timing"]
        self.pairs = checkpoint["pairs"]
