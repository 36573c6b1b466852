"""Checkpoints that are whole, belong to the run, and survive a kill at any moment."""

import logging
import math
import pickle
import signal
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from mtl.base.files import atomic_write
from mtl.federation.ranks import Ranks
from mtl.learning.learner import Learner
from mtl.metrics.scores import Metrics

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint cannot be used; nothing has been changed."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints written to a temporary file and then renamed; damaged ones are refused."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, or leave the file there as it was."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            writing = _WritingFile(file)
            try:
                torch.save(checkpoint, writing)  # type: ignore[arg-type]  # it needs no more than write and flush
            except RuntimeError as error:
                if writing.error is not None:
                    raise writing.error from error
                raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the checkpoint at `path`, see `read_checkpoint`."""
        return read_checkpoint(Path(path))


class _WritingFile:
    """A file that remembers the error of a failed write, such as a full disk, which torch.save replaces by another error."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def read_checkpoint(path: Path, run: str | None = None) -> dict[str, Any]:
    """Read the checkpoint at `path` to the CPU.

    Args:
        path: the file.
        run: fingerprint that the checkpoint must carry, None for any.

    Raises:
        CheckpointError: the file is damaged, was not written by this project, or has another fingerprint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        if torn is not None:
            raise CheckpointError(f"checkpoint {path} is torn: {torn} in it is damaged")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise CheckpointError(f"checkpoint {path} is torn: expected a whole torch file, got {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {path} is not one of mtl's: {error}") from error
    if not isinstance(checkpoint, dict) or "account" not in checkpoint:
        raise CheckpointError(f"checkpoint {path} is not one of mtl's: expected a dictionary with the key account")
    if run is not None and checkpoint["run"] != run:
        raise CheckpointError(f"checkpoint {path} is of another run: its configuration or its data are not those of this one")
    return checkpoint


@dataclass(frozen=True)
class Identity:
    """Fingerprints that checkpoints carry.

    Attributes:
        run: of the configuration and its images.
        files: of everything else that the run reads.
    """

    run: str
    files: str


class NameRun(pl.Callback):
    """Writes the fingerprints of the run into every checkpoint."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the fingerprints."""
        checkpoint["run"], checkpoint["files"] = self.identity.run, self.identity.files


class EvaluateLast(pl.Callback):
    """Evaluates after the last round also where `evaluate_every` does not divide the number of rounds."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the Trainer evaluate after this round if it is the last."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class SaveBest(Checkpoint):
    """Writes `path` whenever the validation metric of the learner is higher than ever before. metrics: all of that round's evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.value = -math.inf
        self.round = 0
        self.metrics: Metrics = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint if this round is the best so far."""
        assert isinstance(pl_module, Learner)
        value = pl_module.latest[pl_module.chosen_by]
        if value > self.value:
            self.value, self.round, self.metrics = value, trainer.current_epoch + 1, dict(pl_module.evaluated)
            trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its round and its metrics."""
        return {"value": self.value, "round": self.round, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value, its round and its metrics."""
        if "metrics" not in state_dict:
            raise CheckpointError(
                "a checkpoint must hold the metrics of the best round, got none: an earlier version of mtl wrote it; train again"
            )
        self.value, self.round, self.metrics = state_dict["value"], state_dict["round"], dict(state_dict["metrics"])


class SaveRounds(Checkpoint):
    """Writes a checkpoint every few rounds and after the last one.

    Ctrl-C and SIGTERM finish the round, write a checkpoint and stop. A second Ctrl-C stops at once; the last checkpoint stays.

    Args:
        path: the file.
        every: number of rounds between checkpoints.
    """

    def __init__(self, path: Path, *, every: int) -> None:
        self.path, self.every = path, every
        self.stopped = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over Ctrl-C and SIGTERM."""
        # Not sooner: Lightning sets its handler for SIGTERM before, which would stop in the middle of a round.
        # Only the main thread may handle signals; a sweep's worker threads leave them to it.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        if Ranks().is_first:
            logger.warning("stopping: this round is finished and saved first; Ctrl-C again to leave at once")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint where one is due, and stop where a signal asked for it."""
        done = trainer.current_epoch + 1
        self.stopped = Ranks().any(self.stopped)
        if done % self.every == 0 or done == trainer.max_epochs or self.stopped:
            trainer.save_checkpoint(self.path, weights_only=False)
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back to their earlier handlers."""
        self._restore()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back to their earlier handlers."""
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
