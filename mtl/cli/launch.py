"""Start one run or a sweep of runs from the words of a command line, by Hydra."""

import contextlib
import functools
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mtl.base.types import Diverged, Interrupted
from mtl.cli.gpus import visible_gpus
from mtl.cli.hydra_errors import EXPECTED, explain
from mtl.cli.job import SearchRefused, run_job, searches
from mtl.cli.run_log import is_first_rank, logged, remove_error, write_error
from mtl.cli.run_sweep import run_sweep
from mtl.cli.sweep import Plan, make_plan, show_configs, show_plan
from mtl.cli.terminal import fail
from mtl.cli.words import GPU_PER_JOB, SWEEPS, check_booleans, quote, readable, split_flags
from mtl.metrics.scores import Summary
from mtl.run.config import CONFIG_NAME, check_name, hydra_with_groups, register
from mtl.run.environment import COMMAND
from mtl.run.experiment_keys import left_out, member_words
from mtl.run.named_experiments import experiments_folder
from mtl.run.objective import objective_value, require_validation
from mtl.run.train import train

logger = logging.getLogger(__name__)


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
    sweep = any(flag in flags for flag in SWEEPS) or "hydra.mode=MULTIRUN" in words
    words = readable(words, sweep=sweep)
    for name in (word.partition("=")[2] for word in words if word.startswith("+experiment=")):
        if name in broken:
            return fail(broken[name])
    try:
        return _sweep(flags, words) if sweep else _single(flags, words)
    except SystemExit as end:  # Hydra's own flags, as --help, end this way
        return end.code if isinstance(end.code, int) else 0
    except BrokenPipeError:
        raise
    except SearchRefused as refused:
        return fail(str(refused))
    except JobFailed as failed:
        return _end(failed.error, words, failed.run_dir)
    except EXPECTED as error:
        return _end(error, words)


def _single(flags: list[str], words: list[str]) -> int:
    """Start one run, or let Hydra print what its flags say; returns the exit code."""
    words = [*words, *member_words(words)]
    if set(flags) - {"-r", "--run"}:
        sys.argv = ["mtl train", *flags, *words]
        hydra.main(version_base="1.3", config_path=None, config_name=CONFIG_NAME)(_run)()
    else:
        with hydra_with_groups(experiments_folder()) as running:
            running.run(CONFIG_NAME, _run, words)
    return 0


def _sweep(flags: list[str], words: list[str]) -> int:
    """Start a sweep, or show it; returns the exit code."""
    plan = make_plan(words, many="--yes" in flags)
    if "--cfg" in flags:
        if plan.jobs is None:
            raise ValueError("--cfg cannot print the jobs of a sweeper that chooses them as it goes")
        show_configs(plan.jobs, resolve="--resolve" in flags)
        return 0
    if "--dry-run" in flags:
        show_plan(plan)
        return 0
    if GPU_PER_JOB in flags:
        word = f"hydra.callbacks.sweep.gpus=[{','.join(map(quote, _gpus(plan)))}]"
        plan = replace(plan, words=[*plan.words, word], user_words=[GPU_PER_JOB, *plan.user_words])
    return run_sweep(plan, _run)


def _gpus(plan: Plan) -> list[str]:
    for job in plan.jobs or ():
        if job.config.trainer.devices > 1:
            raise ValueError(f"{GPU_PER_JOB} gives each job one GPU: trainer.devices must be 1, got {job.config.trainer.devices}")
    return visible_gpus()


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


def _run(config: DictConfig) -> float | None:
    context = HydraConfig.get()
    run_dir = Path(context.runtime.output_dir)
    with _nothing_left(run_dir), _command(context, run_dir):
        if context.mode == RunMode.MULTIRUN:
            return run_job(config, run_dir, _train, functools.partial(_objective, config, run_dir))
        try:
            with logged(run_dir, owns_folder=False):
                value = _train(config, run_dir)
        except Exception as error:
            # What is wrong with the words says nothing about the run that the folder holds.
            if (run_dir / "config.yaml").exists() and (
                isinstance(error, Diverged) or not isinstance(error, (*EXPECTED, Interrupted))
            ):
                write_error(run_dir, error)
            raise JobFailed(error, run_dir) from error
        remove_error(run_dir)
        return value


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


def _train(config: DictConfig, run_dir: Path) -> float | None:
    context = HydraConfig.get()
    check_booleans(context.overrides.task, config)
    if context.mode == RunMode.MULTIRUN and config.write_report == "auto":
        config.write_report = False  # the sweep writes one
    for sentence in left_out(context.overrides.task, context.runtime.choices):
        logger.info("%s", sentence)
    if searches(context):
        require_validation(config)
    summary = train(config, run_dir)
    if not is_first_rank():
        return None
    print(f"run directory: {run_dir}")
    if config.write_report:
        print(f"report: {run_dir / 'report.html'}")
    return _objective(config, run_dir, summary)


def _objective(config: DictConfig, run_dir: Path, summary: Summary) -> float | None:
    """Return what a sweeper gets for a run: a validation metric."""
    value = objective_value(config, summary)
    if value is None and searches(HydraConfig.get()):
        raise ValueError(f"{run_dir} has no validation metrics in summary.json: an earlier version of mtl wrote it; train again")
    return value
