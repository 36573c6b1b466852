"""The directory of a run: whose it is, who works in it, and how far the run is."""

import contextlib
import errno
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from mtl.base.files import atomic_write, naming, read_yaml
from mtl.base.same_run import REPORTING, ROUNDING, identity_with_files
from mtl.base.types import InUse
from mtl.run.identity import differences, identity, needs_rounds

logger = logging.getLogger(__name__)
LOCK = ".lock"
LOG, ERROR = "log.txt", "error.txt"  # what was logged; why the run failed, as long as it has not succeeded
RECORD = "wandb.json"  # the id at W&B, and whether the record there still lacks something
LEFTOVERS = (LOCK, LOG, ERROR)  # what a start that failed leaves behind
PATIENCE = 5  # times that a lock is tried, .02 s apart: `holder` takes it for an instant
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Make `run_dir` and lock it against other processes until the context or this process ends.

    Raises:
        InUse: Another process works there.
        ValueError: The folder has content that is not a run's, or its name is not UTF-8.
    """
    try:
        str(run_dir).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"output_dir must be a name in UTF-8, got {os.fsencode(run_dir)!r}") from error
    _refuse_foreign(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # has no flock
        yield
        return
    import fcntl

    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            for _ in range(PATIENCE):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.02)
            else:
                raise InUse(f"output_dir {run_dir} is in use by {_holder(file)}; wait for it, or say another output_dir")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s has no locks (%s): nothing keeps a second process out of it", run_dir, error)
        with naming(run_dir / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


def holder(run_dir: Path) -> str | None:
    """The process that works in `run_dir`, None where none does or the disk has no locks."""
    lock = run_dir / LOCK
    if sys.platform == "win32" or not lock.exists():
        return None
    import fcntl

    with lock.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(file)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    return None


def _holder(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip() or "another process"


def progress(run_dir: Path, config: Mapping[str, Any]) -> str:
    """How far the run of `config` is in `run_dir`: new, interrupted (a resume goes on with it) or done.

    Raises:
        ValueError: `config.yaml` there is damaged.
    """
    if not (run_dir / "config.yaml").exists():
        return "new"
    if identity_with_files(read_saved(run_dir / "config.yaml")) == identity_with_files(config) and is_finished(run_dir):
        return "done" if is_recorded(run_dir) else "interrupted"
    saved = (run_dir / "checkpoints" / "last.ckpt").exists()
    return "interrupted" if saved or _has_rounds(run_dir / "metrics.csv") else "new"


def is_finished(run_dir: Path) -> bool:
    """Whether all rounds of the run in `run_dir` are done and tested. Rounds that were added since make it unfinished."""
    config, summary = run_dir / "config.yaml", run_dir / "summary.json"
    if not config.exists() or not summary.exists():
        return False
    return bool(json.loads(summary.read_text(encoding="utf-8")).get("fit/rounds") == read_saved(config).get("rounds"))


def is_recorded(run_dir: Path) -> bool:
    """Whether nothing is left to be recorded at W&B: false of a run that was killed before the end of its record."""
    record = run_dir / RECORD
    return not (record.exists() and json.loads(record.read_text(encoding="utf-8")).get("open"))


def open_run_directory(run_dir: Path, config: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Start a run in `run_dir`, or check that it holds this run.

    A run that failed before its first round was saved or logged is replaced. Otherwise nothing of another run is overwritten.

    Args:
        run_dir: the folder.
        config: plain nested values.
        resume: whether to continue a run that is there.

    Returns:
        The checkpoint to continue from, None to start from the beginning.

    Raises:
        ValueError: the folder holds other files, a run of another configuration, or this run and `resume` is false.
    """
    saved = run_dir / "config.yaml"
    if saved.exists():
        before = read_saved(saved)
        checkpoint = run_dir / "checkpoints" / "last.ckpt"
        if not checkpoint.exists() and not _has_rounds(run_dir / "metrics.csv"):
            _write_config(saved, config)
            return None
        differing = sorted(differences(identity(before), identity(config)))
        if differing:
            raise ValueError(
                f"output_dir {run_dir} holds a run of another configuration, which differs in {', '.join(differing)}"
                + _why_rounds(differing, config)
            )
        if not resume:
            raise ValueError(
                f"output_dir {run_dir} holds this run already; use resume=true to continue it, or another output_dir"
            )
        return checkpoint if checkpoint.exists() else None
    _refuse_foreign(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_config(saved, config)
    return None


def update_config(run_dir: Path, config: Mapping[str, Any], *, finished: bool = False) -> None:
    """Write the configuration of a resumed run, and log what changed: machine, engine, paths of files, or number of rounds.

    Of a finished run, which no machine trains again, only paths can change.
    """
    saved = run_dir / "config.yaml"
    before = read_saved(saved)
    updated = dict(config) | {key: before[key] for key in (*REPORTING, *(ROUNDING if finished else ())) if key in before}
    differing = sorted(differences(before, updated))
    if differing:
        logger.info(
            "resumed with another %s: the numbers of a round change by rounding at most",
            ", ".join(differing),
        )
        _write_config(saved, updated)


def _why_rounds(differing: list[str], config: Mapping[str, Any]) -> str:
    if not any(place.startswith("rounds (") for place in differing):
        return ""
    reasons = needs_rounds(config)
    return f"; rounds can grow only where nothing depends on their number, and {' and '.join(reasons)} does" if reasons else ""


def _refuse_foreign(run_dir: Path) -> None:
    if not run_dir.exists() or (run_dir / "config.yaml").exists():
        return
    names = sorted(path.name for path in run_dir.iterdir() if path.name not in LEFTOVERS)
    if names:
        raise ValueError(f"output_dir {run_dir} must be a new, an empty or a run's folder, and it holds {', '.join(names[:3])}")


def _has_rounds(metrics: Path) -> bool:
    return metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) > 1


def read_saved(path: Path) -> dict[str, Any]:
    """Read the configuration of a run. Raises ValueError where the file is damaged."""
    try:
        config = read_yaml(path)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: expected the configuration of a run; use another output_dir")
    return config


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(dict(config), sort_keys=False).encode())
