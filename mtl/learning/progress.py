"""The progress of a run: round, loss with its two parts, the metric that selects the best round, and the time left."""

import contextlib
import sys
import time

import pytorch_lightning as pl
from pytorch_lightning import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from mtl.learning.learner import Learner


class RoundProgress(Callback):
    """A bar on a terminal; elsewhere a line every `seconds_between` seconds."""

    def __init__(self, title: str, *, seconds_between: float = 15.0) -> None:
        self.title, self.seconds_between = title, seconds_between
        self._bar: Progress | None = None
        self._next_line = 0.0
        self._start = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar, and note where no validation images select a round."""
        self._start = (time.monotonic(), trainer.current_epoch)
        self._next_line = self._start[0] + self.seconds_between
        assert isinstance(pl_module, Learner)
        if not trainer.is_global_zero:
            return
        if pl_module.monitor_stage == "monitor":
            note = (
                "no validation images: the last round is tested; monitor/ metrics are of the test images and never select a round"
            )
            _say(f"{self.title}: {note}")
        if not sys.stderr.isatty():
            return
        console = Console(stderr=True)
        columns: list[ProgressColumn] = [
            TextColumn("round"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        ]
        # A narrow terminal needs its room for the numbers.
        before = [TextColumn("{task.description}"), BarColumn(16)] if console.width >= 110 else []
        self._bar = Progress(*before, *columns, console=console)
        self._bar.add_task(self.title, total=trainer.max_epochs, completed=trainer.current_epoch, numbers="")
        self._bar.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Update the bar, or print a line."""
        assert isinstance(pl_module, Learner)
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, numbers=_numbers(pl_module))
        elif trainer.is_global_zero and (time.monotonic() >= self._next_line or done == total):
            began, first = self._start
            left = (time.monotonic() - began) / (done - first) * (total - done)
            self._next_line = time.monotonic() + self.seconds_between
            _say(f"{self.title}: round {done}/{total}  {_numbers(pl_module)}  {left:.0f} s left")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bar."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more, and the run goes on
        print(line, file=sys.stderr, flush=True)


def _numbers(learner: Learner) -> str:
    latest = learner.latest
    text = "" if "loss" not in latest else f"loss {latest['loss']:.4f} (+{latest['positive']:.4f} -{latest['negative']:.4f})"
    if learner.chosen_by in latest:
        text += f"  {learner.chosen_by} {100 * latest[learner.chosen_by]:.1f} %"
    return text
