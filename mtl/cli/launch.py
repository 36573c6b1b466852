"""Start one run or a sweep of runs from the words of a command line, by Hydra."""

import contextlib
import json
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mtl.base.types import Diverged, Interrupted, NoObjective
from mtl.cli.hydra_errors import explain
from mtl.cli.terminal import fail
from mtl.cli.words import check_booleans, readable, split_flags
from mtl.run.config import CONFIG_NAME, check_name, register
from mtl.run.environment import COMMAND
from mtl.run.named_experiments import experiments_folder
from mtl.run.objective import objective_value, require_validation
from mtl.run.spawn import inside_step
from mtl.run.train import train

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
FAILURES = "failures.jsonl"  # of a sweep, a line for each job that failed
EXPECTED = (HydraException, OmegaConfBaseException, ValueError, OSError, Diverged)


def launch(words: list[str]) -> int:
    """Start what `mtl train WORDS` says.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C.
    """
    broken = register(experiments_folder())
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        flags, words = split_flags(words)
        for name in (re.split(r"[=@./]", word.lstrip("+"), maxsplit=1)[0] for word in words if word.startswith("+")):
            if name not in ("experiment", "hydra"):
                check_name(name)  # before Hydra makes a folder
    except ValueError as error:
        return fail(str(error))
    sweep = "-m" in flags or "--multirun" in flags
    words = readable(words, sweep=sweep)
    for name in (word.partition("=")[2] for word in words if word.startswith("+experiment=")):
        if name in broken:
            return fail(broken[name])
    sys.argv = ["mtl train", *flags, *words]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=CONFIG_NAME)(_run)()
    except SystemExit as end:  # Hydra's own flags, as --help, end this way
        return end.code if isinstance(end.code, int) else 0
    except BrokenPipeError:
        raise
    except SweepStopped as stop:
        print(f"mtl: {stop}", file=sys.stderr)
        return 130
    except SearchRefused as refused:
        return fail(str(refused))
    except JobFailed as failed:
        return _end(failed.error, words, failed.run_dir)
    except EXPECTED as error:
        return _end(error, words)
    return _tell_failures() if sweep else 0


def _end(error: BaseException, words: list[str], run_dir: Path | None = None) -> int:
    """Print what ended a run; raise again what is no error of the user's."""
    if isinstance(error, BrokenPipeError) or not isinstance(error, (*EXPECTED, Interrupted)):
        raise error from error.__cause__
    if isinstance(error, Interrupted):
        print(f"mtl: {error}", file=sys.stderr)
        return 130
    return fail(explain(error, words, run_dir), 1 if isinstance(error, Diverged) else 2)


class JobFailed(BaseException):
    """Wraps the error of a single run: Hydra prints all words again before an Exception, which this is not."""

    def __init__(self, error: Exception, run_dir: Path) -> None:
        super().__init__(str(error))
        self.error, self.run_dir = error, run_dir


class SweepStopped(KeyboardInterrupt):
    """A job was stopped by Ctrl-C: Hydra continues with the next job after an Exception, which this is not."""


class SearchRefused(BaseException):
    """No job of the search can have what it maximises: Hydra continues with the next job after an Exception, which this is not."""


class Sweep(Callback):
    """Remembers the folder of this process's sweep, and deletes the list of jobs that failed there before."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        Sweep.folder = Path(config.hydra.sweep.dir)
        (Sweep.folder / FAILURES).unlink(missing_ok=True)


def _run(config: DictConfig) -> float | None:
    context = HydraConfig.get()
    run_dir = Path(context.runtime.output_dir)
    with _nothing_left(run_dir), _command(context, run_dir):
        if context.mode != RunMode.MULTIRUN:
            try:
                return _train(config, run_dir)
            except Exception as error:
                raise JobFailed(error, run_dir) from error
        config.tracking.group = config.tracking.group or Path(context.sweep.dir).name
        config.name = config.name or context.job.override_dirname
        try:
            return _train(config, run_dir)
        except Interrupted as stop:
            raise SweepStopped(
                f"job {context.job.num} is stopped and the sweep with it; the same command with resume=true "
                f"output_dir={context.sweep.dir} goes on"
            ) from stop
        except Exception as error:  # the next job does not depend on this one
            if isinstance(error, NoObjective) and _searches(context):
                raise SearchRefused(str(error)) from error
            _write_failure(Path(context.sweep.dir), context.job.num, context.job.override_dirname, error, run_dir)
            return math.nan  # which sweepers that optimise know as a failure


@contextlib.contextmanager
def _command(context: Any, run_dir: Path) -> Iterator[None]:
    """Put the command that makes this run, rather than the sweep that it is a job of, where the run records it."""
    words = list(context.overrides.task)
    if context.mode == RunMode.MULTIRUN:
        words = [word for word in words if not word.startswith("output_dir=")]
        words.append(*readable([f"output_dir={run_dir}"]))
    os.environ[COMMAND] = shlex.join(["mtl", "train", *words])
    try:
        yield
    finally:
        del os.environ[COMMAND]


@contextlib.contextmanager
def _nothing_left(run_dir: Path) -> Iterator[None]:
    """Remove the folder that Hydra made, if the run has left it empty."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # of an empty folder alone


def _write_failure(folder: Path, number: int, words: str, error: Exception, run_dir: Path) -> None:
    """Print why a job failed, and keep it for the end of the sweep, which another process may print."""
    message = explain(error, [], run_dir) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
    if not isinstance(error, EXPECTED):
        traceback.print_exception(error)
    print(f"mtl: error: job {number} ({words}): {message}", file=sys.stderr, flush=True)
    with (folder / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"job": number, "words": words, "message": message}) + "\n")


def _tell_failures() -> int:
    """Print what failed in the sweep of this process; returns the exit code of the sweep."""
    file = None if Sweep.folder is None else Sweep.folder / FAILURES
    if file is None or not file.exists():
        return 0
    failures = sorted(
        (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()), key=lambda failure: int(failure["job"])
    )
    print(f"mtl: error: {len(failures)} of the sweep's jobs failed ({file}):", file=sys.stderr)
    for failure in failures:
        print(f"  job {failure['job']} ({failure['words']}): {failure['message']}", file=sys.stderr)
    return 1


def _train(config: DictConfig, run_dir: Path) -> float | None:
    context = HydraConfig.get()
    check_booleans(context.overrides.task, config)
    if _searches(context):
        require_validation(config)
    summary = train(config, run_dir)
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0") if inside_step() else "0")):
        return None  # the first rank tells
    print(f"run directory: {run_dir}")
    if config.write_report:
        print(f"report: {run_dir / 'report.html'}")
    value = objective_value(config, summary)
    if value is None and _searches(context):
        raise ValueError(f"{run_dir} has no validation metrics in summary.json: an earlier version of mtl wrote it; train again")
    return value


def _searches(context: Any) -> bool:
    """Whether a sweeper chooses the next jobs by what the earlier ones return. Hydra's default sweeper does not."""
    return context.mode == RunMode.MULTIRUN and str(context.sweeper._target_) != BASIC_SWEEPER
