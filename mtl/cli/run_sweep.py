"""A sweep from its first job to the table at its end."""

import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mtl.cli.job import RUNNING, SweepStopped
from mtl.cli.outcomes import SKIPPED, Outcome, Records, print_outcomes
from mtl.cli.run_log import is_first_rank
from mtl.cli.sweep import Plan


def run_sweep(plan: Plan, start: Callable[[], None]) -> int:
    """Run the jobs of a plan, and print what became of them.

    Args:
        plan: the sweep.
        start: hands the jobs to Hydra.

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
        with _stopping(records, in_process=plan.in_process):
            start()
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
