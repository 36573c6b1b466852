"""Starts the ranks of a run on this machine, one process each, and waits for them.

Every rank has the environment variables that `torchrun` would set. Where one rank fails the others are ended, and its error is raised in
the process that started them.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mtl.base.types import Diverged, Interrupted, InUse, NoObjective

GRACE = 10.0  # seconds in which the other ranks may end by themselves
READY = "ready"  # the file that says that the first rank can be interrupted
RECORDED = ("name", "levelno", "levelname", "pathname", "filename", "module", "funcName", "lineno", "created")  # of a log record
RAISED = {kind.__name__: kind for kind in (NoObjective, InUse, ValueError, OSError, Diverged, Interrupted)}


def inside_rank() -> bool:
    """Whether this process was started as one of several: by `run_ranks`, torchrun or srun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or inside_step()


def inside_step() -> bool:
    """Whether srun has started this process as one of several.

    A batch script or a shell inside of an allocation of several tasks is started once, though the environment has their number.
    """
    return "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def run_ranks(count: int, config: dict[str, Any], run_dir: Path) -> None:
    """Train on several ranks, and wait for them. Their log messages are logged here.

    Ctrl-C and SIGTERM are passed on to the first rank. Before it can handle them they end all ranks, and then act on this process as if it
    had no ranks.

    Args:
        count: number of ranks.
        config: plain nested values.
        run_dir: the run directory.

    Raises:
        ValueError, OSError, Diverged, Interrupted: as the first rank that failed raised it.
        RuntimeError: a rank ended without an error that it could report.
    """
    stop = _Stop()
    with tempfile.TemporaryDirectory(prefix="mtl-ranks-") as name:
        folder = Path(name)
        task = folder / "task.json"
        job = {"config": config, "run_dir": str(run_dir), "log_level": logging.getLogger().getEffectiveLevel()}
        # Not sorted: `fleet.mix` deals out devices in the order of its keys.
        task.write_text(json.dumps(job), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes: list[subprocess.Popen[bytes]] = []
        with stop.listening():
            try:
                for rank in range(count):
                    if not stop.signal:
                        processes.append(_start(rank, count, port, task))
                _wait(processes, folder, stop)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
        codes = [process.returncode for process in processes]
        reason = _reason(folder, codes) if any(codes) else None
    if (stop.signal and len(codes) < count) or (isinstance(reason, _Unexplained) and stop.signal):
        signal.raise_signal(stop.signal)
        raise Interrupted("stopped while the ranks started")
    if reason is not None:
        raise reason


class _Unexplained(RuntimeError):
    """A rank ended without saying why."""


class _Stop:
    """The last signal that arrived, 0 for none, and the signals that have not been passed on."""

    def __init__(self) -> None:
        self.signal = 0
        self.pending: list[int] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM; Python allows that in the main thread alone."""
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.pending.append(number)


def _start(rank: int, count: int, port: int, task: Path) -> subprocess.Popen[bytes]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    environment = os.environ | {name: str(value) for name, value in place.items()}
    # In a new session, so that a Ctrl-C reaches it only through us. Modules are found on the path of this process, but Python's come
    # first: a file statistics.py in the working folder must not replace the standard one.
    code = (
        f"import sys; sys.path += [p for p in {sys.path!r} if p not in sys.path]; from mtl.run.rank import main; sys.exit(main())"
    )
    command = [sys.executable, "-P", "-c", code, str(task)]
    return subprocess.Popen(command, env=environment | {"PYTHONSAFEPATH": "1"}, start_new_session=True)


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, stop: _Stop) -> None:
    """Wait until all ranks have ended, or `GRACE` after one failed, or until a signal that the ranks cannot handle yet."""
    logs = _Logs(folder, len(processes))
    end = None
    while any(process.poll() is None for process in processes):
        logs.pass_on()
        while stop.pending:
            if not (folder / READY).exists():
                return
            processes[0].send_signal(stop.pending.pop(0))
        failed = [rank for rank, process in enumerate(processes) if process.returncode]
        if failed and stop.signal and not (folder / f"error{failed[0]}.json").exists():
            break
        if end is None and failed:
            end = time.monotonic() + GRACE
        if end is not None and time.monotonic() > end:
            break
        time.sleep(0.05)
    logs.pass_on()


class _Logs:
    """Logs the messages of the ranks here; a message that several ranks log n times each is logged n times."""

    def __init__(self, folder: Path, count: int) -> None:
        self._paths = [folder / f"log{rank}.jsonl" for rank in range(count)]
        self._read = [0] * count
        self._counts: list[Counter[tuple[str, str]]] = [Counter() for _ in range(count)]
        self._shown: Counter[tuple[str, str]] = Counter()

    def pass_on(self) -> None:
        """Log the messages since the last call."""
        for rank, path in enumerate(self._paths):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read[rank])
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[rank] += len(whole) + len(newline)
            for line in whole.splitlines():
                fields = json.loads(line)
                key = (fields["name"], fields["msg"])
                self._counts[rank][key] += 1
                if self._counts[rank][key] > self._shown[key]:
                    self._shown[key] += 1
                    logger = logging.getLogger(fields["name"])
                    if logger.isEnabledFor(fields["levelno"]):
                        logger.handle(logging.makeLogRecord(fields))


class RankLog(logging.Handler):
    """Writes the messages of a rank to a file, which the process that started it reads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message as a line of JSON."""
        fields = {name: getattr(record, name) for name in RECORDED}
        fields["msg"] = record.getMessage()
        if record.exc_info:
            fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


def _reason(folder: Path, codes: list[int]) -> Exception:
    for rank in range(len(codes)):
        path = folder / f"error{rank}.json"
        if path.exists():
            error = json.loads(path.read_text(encoding="utf-8"))
            return RAISED[error["kind"]](error["message"])
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    tracebacks = [
        path.read_text(encoding="utf-8") for place in range(len(codes)) if (path := folder / f"traceback{place}.txt").exists()
    ]
    more = ":\n" + "\n".join(tracebacks) if tracebacks else "; its output is above"
    return _Unexplained(f"rank {rank} ended with exit code {code}{more}")
