"""One rank of a run, started by `mtl.run.spawn`. What a user can mend is written beside the task."""

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
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(level=logging.INFO if os.environ["RANK"] == "0" else logging.WARNING, format="%(message)s")
    task = Path(sys.argv[1])
    told, rank = json.loads(task.read_text(encoding="utf-8")), os.environ["RANK"]
    root = logging.getLogger()
    root.setLevel(told["log_level"])
    root.addHandler(RankLog(task.parent / f"log{rank}.jsonl"))
    try:
        if rank == "0":
            (task.parent / READY).touch()
        train(OmegaConf.create(told["config"]), Path(told["run_dir"]))
    except tuple(RAISED.values()) as error:
        kind = next(name for name, raised in RAISED.items() if isinstance(error, raised))
        write_json(task.parent / f"error{rank}.json", {"kind": kind, "message": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 it may follow from the end of another rank: whoever started them knows
        (task.parent / f"traceback{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return 1
    return 0


def _leave_with_parent(parent: int) -> None:
    """End this process when the one that watches it is gone, even by a SIGKILL."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
