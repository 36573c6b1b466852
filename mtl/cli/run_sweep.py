"""A sweep from its first job to the table at its end."""

import contextlib
import copy
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from mtl.cli.job import RUNNING, SweepStopped
from mtl.cli.outcomes import DONE, SKIPPED, Outcome, Records, print_outcomes
from mtl.cli.run_log import is_first_rank
from mtl.cli.sweep import Job, Plan
from mtl.report.page import write_report
from mtl.report.runs import find_runs
from mtl.run.config import CONFIG_NAME, hydra_with_groups
from mtl.run.named_experiments import experiments_folder


class PlannedJobs:
    """Hydra's source of configurations, which composed those of the planned jobs already.

    Hydra asks for each of them twice in the process of the sweep; other processes compose those of their jobs themselves.

    Args:
        loader: composes what is not planned.
        jobs: the planned jobs.
    """

    def __init__(self, loader: ConfigLoader, jobs: Sequence[Job]) -> None:
        self._loader = loader
        self._planned = {job.overrides: job for job in jobs}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlannedJobs, (self._loader, ())

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """See `ConfigLoader`."""
        job = self._planned.get(tuple(sweep_overrides))
        if job is None:
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        config = copy.deepcopy(job.composed)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.sweep.subdir = job.run_dir.name
        config.hydra.callbacks = master_config.hydra.callbacks  # these know which jobs are twins
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config


def run_sweep(plan: Plan, run: Callable[[DictConfig], float | None]) -> int:
    """Run the jobs of a plan, and print what became of them.

    Args:
        plan: the sweep.
        run: a job, given its configuration.

    Returns:
        The exit code: 0 all done or left to others, 1 some failed, 130 stopped.
    """
    records, planned = Records(plan.folder, plan.token), None if plan.jobs is None else [job.run_dir.name for job in plan.jobs]
    if plan.jobs and all(job.state == "done" for job in plan.jobs):
        print_outcomes(plan.folder, {job.number: Outcome(job.number, job.run_dir.name, SKIPPED) for job in plan.jobs}, planned)
        return 0
    RUNNING.add(plan.token)
    broken: Exception | None = None
    try:
        with _stopping(records, in_process=plan.in_process), hydra_with_groups(experiments_folder()) as hydra:
            loader: Any = PlannedJobs(hydra.config_loader, plan.jobs or ())
            hydra.config_loader = loader
            hydra.multirun(CONFIG_NAME, run, plan.words)
    except KeyboardInterrupt:
        records.stop()
    except Exception as error:  # noqa: BLE001 the table comes first; a launcher whose processes were stopped fails too
        broken = error
    finally:
        RUNNING.discard(plan.token)
        stopped, outcomes = records.stopped, records.read()
        records.remove()
    failed = print_outcomes(plan.folder, outcomes, planned) if is_first_rank() and (outcomes or not broken) else 0
    if broken is not None and not stopped:
        raise broken
    if stopped:
        command = shlex.join(["mtl", "train", "-m", *plan.user_words])
        print(f"mtl: the sweep is stopped; this goes on with it:\n  {command}", file=sys.stderr)
        return 130
    if plan.write_report and is_first_rank() and any(outcome.outcome == DONE for outcome in outcomes.values()):
        print(f"report: {write_report(find_runs([plan.folder]), plan.folder)}")
    return 1 if failed else 0


@contextlib.contextmanager
def _stopping(records: Records, *, in_process: bool) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the sweep, also between the rounds of its jobs, each of which has handlers of its own.

    Jobs in other processes finish their round and save it; a second signal does not wait for them.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if in_process or records.stopped:
            raise SweepStopped("stopped")
        records.stop()
        print("mtl: stopping: jobs finish their round and save it; Ctrl-C again to leave at once", file=sys.stderr, flush=True)
        for process in multiprocessing.active_children():
            if number == signal.SIGTERM and process.pid is not None:  # a terminal sends Ctrl-C to all processes itself
                os.kill(process.pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
