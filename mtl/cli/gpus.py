"""One GPU for each process that trains jobs of a sweep: `mtl train -m --gpu-per-job hydra/launcher=joblib hydra.launcher.n_jobs=4`."""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

logger = logging.getLogger(__name__)
VISIBLE = "CUDA_VISIBLE_DEVICES"
TAKEN: dict[str, int | None] = {}  # this process's GPU, with the file that stays locked until it ends; None where it is shared


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them. Raises ValueError where there are none."""
    said = os.environ.get(VISIBLE)
    # Counting does not start CUDA, which would read the variable once and for all.
    names = map(str, range(torch.cuda.device_count())) if said is None else map(str.strip, said.split(","))
    gpus = [name for name in names if name]
    if not gpus:
        raise ValueError("--gpu-per-job gives each job a GPU, and none is visible")
    return gpus


def take_gpu(gpus: Sequence[str], job: int) -> None:
    """Let this process see one GPU alone, from its first job on: CUDA reads what is visible only once in a process.

    Args:
        gpus: of the sweep; where there are none, nothing changes.
        job: number of the process's first job. Its GPU is the one of this number, counted round; where another process has that, the next
            that is free, and where none is free it is shared.
    """
    if not gpus:
        return
    if not TAKEN:
        first = job % len(gpus)
        taken = next(((gpu, file) for gpu in (*gpus[first:], *gpus[:first]) if (file := _lock(gpu)) is not None), None)
        gpu, file = taken or (gpus[first], None)
        TAKEN[gpu], os.environ[VISIBLE] = file, gpu
    ((gpu, file),) = TAKEN.items()
    logger.info("job %d trains on GPU %s%s", job, gpu, "" if file is not None else ", which it shares with another process")


def _lock(gpu: str) -> int | None:
    """Lock a GPU against other processes of this user on this machine; None where another has it."""
    if sys.platform == "win32":  # has no flock
        return None
    import fcntl

    path = Path(tempfile.gettempdir(), f"mtl-{os.getuid()}-gpu-{gpu.replace('/', '-')}.lock")
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
