"""One job of a sweep: skipped where its run is done or another process works on it, gone on with where it was interrupted."""

import json
import logging
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mtl.base.types import Interrupted, InUse, NoObjective
from mtl.cli.gpus import take_gpu
from mtl.cli.hydra_errors import EXPECTED
from mtl.cli.job_folder import plain, readable_name
from mtl.cli.outcomes import DONE, FAILED, IN_USE, SKIPPED, STOPPED, TWIN, Outcome, Records
from mtl.cli.run_log import is_first_rank, logged, remove_error, write_error
from mtl.run.directory import LOG, holder, progress
from mtl.run.rules import check_rules

logger = logging.getLogger(__name__)
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Tokens of the sweeps that this process started: a job that runs in it ends the sweep by an error, any other by its record.
RUNNING: set[str] = set()


class SearchRefused(BaseException):
    """No job can have what `objective` says: Hydra continues with the next job after an Exception, which this is not."""


def searches(context: Any) -> bool:
    """Whether a sweeper chooses the next jobs by what the earlier ones return. Hydra's default sweeper does not."""
    return context.mode == RunMode.MULTIRUN and str(context.sweeper._target_) != BASIC_SWEEPER


def _nothing(context: Any) -> float | None:
    """What sweepers know as a failure. Hydra's sweeper of Optuna stops at NaN."""
    return None if ".hydra_optuna_sweeper." in str(context.sweeper._target_) else math.nan


class SweepStopped(KeyboardInterrupt):
    """A job was stopped by Ctrl-C: Hydra continues with the next job after an Exception, which this is not."""


def run_job(
    config: DictConfig,
    run_dir: Path,
    train: Callable[[DictConfig, Path], float | None],
    objective: Callable[[Any], float | None],
) -> float | None:
    """Run a job of a sweep.

    Args:
        config: of the run.
        run_dir: where it lies.
        train: trains, and returns what the sweeper optimises.
        objective: reads that from the summary of a run that is done.

    Returns:
        What the sweeper optimises; where there is nothing NaN, which sweepers know as a failure, or None for Optuna's.
    """
    context = HydraConfig.get()
    nothing = _nothing(context)
    sweep = context.callbacks["sweep"]
    keys, token = list(sweep["keys"]), str(sweep["token"])
    records = Records(Path(context.sweep.dir), token)
    if records.stopped:
        return nothing

    def record(outcome: str, reason: str = "") -> None:
        if is_first_rank():
            records.write(Outcome(int(context.job.num), run_dir.name, outcome, reason))

    if context.job.num in sweep["twins"]:
        record(TWIN, "the run of an earlier job")
        return nothing
    _name(config, keys)
    try:
        check_rules(config)
        if (process := holder(run_dir)) is not None:
            logger.info("job %s is left to %s, which works in %s", context.job.num, process, run_dir)
            record(IN_USE, process)
            return nothing
        if progress(run_dir, plain(config)) == "done":
            print(f"run directory: {run_dir} (done already)")
            record(SKIPPED)
            return objective(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))
        with logged(run_dir, owns_folder=True):
            take_gpu(list(sweep["gpus"]), int(context.job.num))
            value = train(config, run_dir)
        remove_error(run_dir)
    except InUse as error:  # it came first
        logger.info("job %s is left to another process: %s", context.job.num, error)
        record(IN_USE, str(error))
        return nothing
    except (Interrupted, KeyboardInterrupt) as stop:
        record(STOPPED)
        records.stop()
        if token in RUNNING:
            raise SweepStopped(str(stop)) from stop
        return nothing
    except NoObjective as error:
        raise _refusal(error, run_dir) from error
    except Exception as error:  # noqa: BLE001 the next job does not depend on this one
        record(FAILED, _report_failure(error, run_dir, keys))
        return nothing
    record(DONE)
    return value


def _name(config: DictConfig, keys: list[str]) -> None:
    """Name a job's run, at W&B too, by what is swept, and let it go on where it was interrupted."""
    context = HydraConfig.get()
    config.tracking.group = config.tracking.group or Path(context.sweep.dir).name
    words, swept = list(context.overrides.task), readable_name(list(context.overrides.task), keys)
    said = "name" not in keys and any(word.startswith("name=") for word in words)  # not by an experiment, for all jobs alike
    config.name = "_".join(filter(None, (config.name if said or not swept else None, swept))) or None
    config.resume = True


def _refusal(error: NoObjective, run_dir: Path) -> SearchRefused:
    """Leave no folder of a job that was refused before it began."""
    if not (run_dir / "config.yaml").exists():
        (run_dir / LOG).unlink(missing_ok=True)
    return SearchRefused(str(error))


def _report_failure(error: Exception, run_dir: Path, keys: list[str]) -> str:
    """Print why a job failed, write it to `error.txt`, and return it."""
    context = HydraConfig.get()
    words = " ".join(word for word in context.overrides.task if word.partition("=")[0] in keys)
    if not isinstance(error, EXPECTED):
        traceback.print_exception(error)
    try:
        message = write_error(run_dir, error)
    except OSError as unwritable:
        message = f"{error}; error.txt cannot be written: {unwritable}"
    print(f"mtl: error: job {context.job.num} ({words}): {message}", file=sys.stderr, flush=True)
    return message
