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
    """Checkpoints written beside their place and then put there in one step; torn ones are refused."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
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
        return read_checkpoint(Path(path))


class _WritingFile:
    """Writes to a file and remembers why it could not: torch.save hides that, a full disk say, behind an error of its own."""

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
    """The checkpoint at `path`, on the CPU.

    Raises `CheckpointError` where it is torn, not one of this project's, or, with `run`, not of the run of that fingerprint.
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
    """Fingerprints that checkpoints carry. run: of the configuration and its images; files: of all else that is read."""

    run: str
    files: str


class NameRun(pl.Callback):
    """Writes into every checkpoint whose it is."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"], checkpoint["files"] = self.identity.run, self.identity.files


class EvaluateLast(pl.Callback):
    """Evaluates after the last round also where `evaluate_every` does not divide the number of rounds."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
        assert isinstance(pl_module, Learner)
        value = pl_module.latest[pl_module.chosen_by]
        if value > self.value:
            self.value, self.round, self.metrics = value, trainer.current_epoch + 1, dict(pl_module.evaluated)
            trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "round": self.round, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "metrics" not in state_dict:
            raise CheckpointError(
                "a checkpoint must hold the metrics of the best round, got none: an earlier version of mtl wrote it; train again"
            )
        self.value, self.round, self.metrics = state_dict["value"], state_dict["round"], dict(state_dict["metrics"])


class SaveRounds(Checkpoint):
    """Writes `path` after every `every` rounds and after the last, and makes Ctrl-C and SIGTERM finish the round, write it and stop.

    A second Ctrl-C leaves at once; what the last checkpoint holds is not lost.
    """

    def __init__(self, path: Path, *, every: int) -> None:
        self.path, self.every = path, every
        self.stopped = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not sooner: Lightning sets a handler of its own for SIGTERM, which would stop in the middle of a round.
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
        done = trainer.current_epoch + 1
        self.stopped = Ranks().any(self.stopped)
        if done % self.every == 0 or done == trainer.max_epochs or self.stopped:
            trainer.save_checkpoint(self.path, weights_only=False)
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
