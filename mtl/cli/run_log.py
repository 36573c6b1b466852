"""`log.txt` and `error.txt` of a run directory: what was logged, and why the run failed."""

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from mtl.base.files import atomic_write
from mtl.cli.hydra_errors import EXPECTED, explain
from mtl.run.directory import ERROR, LOG, is_finished
from mtl.run.spawn import inside_step

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def is_first_rank() -> bool:
    """Whether this process writes the files of the run: torchrun and srun start several of them."""
    return not int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0") if inside_step() else "0"))


class RunLog(logging.Handler):
    """Appends to `log.txt` in the run directory, as soon as that is a run's.

    Args:
        run_dir: the run directory.
        owns_folder: write at once; else once the folder has a `config.yaml`, which makes it a run's.
    """

    def __init__(self, run_dir: Path, *, owns_folder: bool) -> None:
        super().__init__()
        self.run_dir, self.owns_folder = run_dir, owns_folder
        self._waiting: list[str] = []
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it until there is a place for it."""
        try:
            self._waiting.append(self.format(record) + "\n")
            self.write()
        except Exception:  # noqa: BLE001 as handlers of logging do: what cannot be logged does not end the run
            self.handleError(record)

    def write(self) -> None:
        """Write what waits, if the folder is the run's by now."""
        if self.owns_folder or (self.run_dir / "config.yaml").exists():
            with (self.run_dir / LOG).open("a", encoding="utf-8") as file:
                file.writelines(self._waiting)
            self._waiting.clear()


@contextlib.contextmanager
def logged(run_dir: Path, *, owns_folder: bool) -> Iterator[None]:
    """Write what the first rank logs in the block to `log.txt`. owns_folder: see `RunLog`."""
    if not is_first_rank():
        yield
        return
    handler = RunLog(run_dir, owns_folder=owns_folder)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.write()
        handler.close()


def write_error(run_dir: Path, error: Exception) -> str:
    """Write `error.txt`, with a traceback unless the user can mend the error; return the message.

    The folder of a finished run gets no `error.txt`: that run has not failed.
    """
    expected = isinstance(error, EXPECTED)
    message = explain(error, [], run_dir) if expected else f"{type(error).__name__}: {error}"
    trace = "" if expected else "\n" + "".join(traceback.format_exception(error))
    if is_first_rank() and not is_finished(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(run_dir / ERROR) as file:
            file.write(f"{message}\n{trace}".encode(errors="backslashreplace"))
    return message


def remove_error(run_dir: Path) -> None:
    """The run has succeeded."""
    if is_first_rank():
        (run_dir / ERROR).unlink(missing_ok=True)
