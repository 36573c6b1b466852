"""What a run records of where it ran: commit, versions, command and machine."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

LIBRARIES = (
    *("torch", "torchvision", "pytorch-lightning", "torchmetrics"),
    *("hydra-core", "hydra-zen", "omegaconf", "numpy", "wandb"),
)
COMMAND = "MTL_COMMAND"  # the environment variable with the command line of a rank or of a sweep's job


def environment() -> dict[str, Any]:
    """Return the commit, library versions, command and machine of this process."""
    versions = {name: _version(name) for name in LIBRARIES}
    # An installed package may be inside of another project's repository.
    ours = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "commit": _git("rev-parse", "HEAD") if ours else None,
        "dirty": ours and bool(_git("status", "--porcelain", "--untracked-files=no")),
        "mtl": _version("mtl"),
        "python": platform.python_version(),
        "versions": versions,
        "command": os.environ.get(COMMAND) or shlex.join(sys.argv),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu": _cpu(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    """The model of the processor, where the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "Hardware")))
    return next(models, "") or platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
