"""One rank of a run, started by `mtl.run.spawn`; errors that a user can correct are written to the folder of the task file."""

import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from omegaconf import OmegaConf

from mtl.base.files import write_json
from mtl.run.spawn import RAISED, READY, RankLog
from mtl.run.train import train


def main() -> int:
    """Train as the task file says, which the command line names, and return the exit code."""
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(level=logging.INFO if os.environ["RANK"] == "0" else logging.WARNING, format="%(message)s")
    task = Path(sys.argv[1])
    job, rank = json.loads(task.read_text(encoding="utf-8")), os.environ["RANK"]
    root = logging.getLogger()
    root.setLevel(job["log_level"])
    root.addHandler(RankLog(task.parent / f"log{rank}.jsonl"))
    try:
        if rank == "0":
            (task.parent / READY).touch()
        train(OmegaConf.create(job["config"]), Path(job["run_dir"]))
    except tuple(RAISED.values()) as error:
        kind = next(name for name, raised in RAISED.items() if isinstance(error, raised))
        write_json(task.parent / f"error{rank}.json", {"kind": kind, "message": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 the failure of another rank may be its cause: the process that started them decides
        (task.parent / f"traceback{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return 1
    return 0


def _leave_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, even by a SIGKILL."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
