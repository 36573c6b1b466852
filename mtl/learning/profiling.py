"""Where the time of a round goes: a trace for a viewer, and a table, of a few rounds after the first."""

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch.profiler import ProfilerActivity, profile

from mtl.base.files import atomic_write
from mtl.federation.ranks import Ranks

logger = logging.getLogger(__name__)
ROUNDS = 3
PART = "mtl/"  # how the parts of a round are marked in the code


class ProfileRounds(Callback):
    """Writes trace.json (for chrome://tracing or Perfetto) and table.txt.

    They are of the first rank and of the second to fourth round of this process, or of the first round where there is no other.

    Args:
        folder: where to write them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rounds = 0
        self._profiler: Any = None
        self._running = False
        self._start, self._first = 0.0, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the profiler in the second round."""
        only_one = trainer.current_epoch + 1 == trainer.max_epochs
        if self._profiler is None and Ranks().is_first and (self._rounds == 1 or (self._rounds == 0 and only_one)):
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            # There is only one cycle of events; torch 2.11 warns unless acc_events is set.
            self._profiler = profile(activities=kinds, acc_events=True)
            self._profiler.start()
            self._running = True
            self._start, self._first = time.perf_counter(), self._rounds
        self._rounds += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the profiler and write the files when enough rounds have passed."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if self._running and (last or self._rounds - self._first == ROUNDS):
            self._running = False
            self._finish(self._rounds - self._first)

    def _finish(self, rounds: int) -> None:
        milliseconds = (time.perf_counter() - self._start) * 1e3 / rounds
        self._profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / "trace.json"))
        averages = self._profiler.key_averages()
        parts = sorted((event for event in averages if event.key.startswith(PART)), key=lambda event: -event.cpu_time_total)
        lines = [f"{'part':<28}{'calls a round':>14}{'ms a round':>12}{'share':>8}"]
        for event in parts:
            spent = event.cpu_time_total / 1e3 / rounds
            name = event.key.removeprefix(PART)
            lines.append(f"{name:<28}{event.count / rounds:>14.1f}{spent:>12.2f}{spent / milliseconds:>8.1%}")
        rest = milliseconds - sum(event.cpu_time_total for event in parts) / 1e3 / rounds
        lines.append(f"{'the rest':<28}{'':>14}{rest:>12.2f}{rest / milliseconds:>8.1%}")
        lines.append(f"{'a round, while profiled':<28}{'':>14}{milliseconds:>12.2f}")
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        text = "\n".join([*lines, "", averages.table(sort_by=by, row_limit=30, max_name_column_width=40)])
        with atomic_write(self.folder / "table.txt") as file:
            file.write(text.encode())
        logger.info("\n%s\nprofile: %s, and trace.json in the same folder", "\n".join(lines), self.folder / "table.txt")
