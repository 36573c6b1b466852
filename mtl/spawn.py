"""The ranks of a run on this machine: one process each, watched by the one that started them.

Every rank is what `torchrun` would start: `python -m mtl.rank` with its place in the environment. Where one fails the others are ended,
and the reason is raised here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from mtl.files import write_json
from mtl.types import Diverged, Interrupted

GRACE = 10.0  # seconds in which the other ranks may end by themselves
RAISED = {kind.__name__: kind for kind in (ValueError, OSError, Diverged, Interrupted)}


def inside_rank() -> bool:
    """Whether this process was started as one of several: by `run_ranks`, torchrun or srun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or inside_step()


def inside_step() -> bool:
    """Whether srun has started this process as one of several. A batch script, or a shell, inside an allocation of several tasks is
    started once, though it knows their number.
    """
    return "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def run_ranks(count: int, config: dict[str, Any], run_dir: Path) -> None:
    """Run `config` in `run_dir` on `count` ranks, and wait. Raises what the first rank that failed for a reason of its own raised."""
    with tempfile.TemporaryDirectory(prefix="mtl-ranks-") as folder:
        task = Path(folder) / "task.json"
        write_json(task, {"config": config, "run_dir": str(run_dir)})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [_start(rank, count, port, task) for rank in range(count)]
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
        try:
            for number in before:
                signal.signal(number, lambda number, frame: processes[0].send_signal(number))
            _wait(processes)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process in processes:
                process.kill()
                process.wait()
        if any(process.returncode for process in processes):
            raise _reason(Path(folder), [process.returncode for process in processes])


def _start(rank: int, count: int, port: int, task: Path) -> subprocess.Popen[bytes]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
        "WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    environment = os.environ | {name: str(value) for name, value in place.items()}
    # In a session of its own: a Ctrl-C comes once, by us. Modules are found where this process finds them, but first where Python has
    # its own: a file named statistics.py in the working folder is not meant.
    code = f"import sys; sys.path += [p for p in {sys.path!r} if p not in sys.path]; from mtl.rank import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", code, str(task)]
    return subprocess.Popen(command, env=environment | {"PYTHONSAFEPATH": "1"}, start_new_session=True)


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all are done, or one has failed and the others had time to."""
    end = None
    while any(process.poll() is None for process in processes):
        if end is None and any(process.returncode for process in processes):
            end = time.monotonic() + GRACE
        if end is not None and time.monotonic() > end:
            return
        time.sleep(0.05)


def _reason(folder: Path, codes: list[int]) -> Exception:
    for rank in range(len(codes)):
        path = folder / f"error{rank}.json"
        if path.exists():
            error = json.loads(path.read_text())
            return RAISED[error["kind"]](error["message"])
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    return RuntimeError(f"rank {rank} ended with exit code {code}; what it said is above")
