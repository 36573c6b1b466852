"""What a run records of where it ran, in `environment.json`: commit, versions, command and machine.

A resumed run adds to that file, under `resumed`, what was different at its later starts. Changes of tracked files that are in no commit
are in `changes.patch`, and of a later start in `changes-ROUND.patch`, the round that it went on from.
"""

import functools
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mtl.base.files import atomic_write, write_json
from mtl.run.provenance import read_code

FILE = "environment.json"
# Libraries by the module that tells their version.
LIBRARIES = {
    **{"torch": "torch", "torchvision": "torchvision", "pytorch-lightning": "pytorch_lightning", "torchmetrics": "torchmetrics"},
    **{
        "hydra-core": "hydra",
        "hydra-zen": "hydra_zen",
        "omegaconf": "omegaconf",
        "numpy": "numpy",
        "pillow": "PIL",
        "wandb": "wandb",
    },
}
COMMAND = "MTL_COMMAND"  # the environment variable with the command line of a rank or of a sweep's job


def write_environment(run_dir: Path, last_round: int | None, about: Mapping[str, Any]) -> None:
    """Write where a run starts or goes on.

    Args:
        run_dir: the run directory.
        last_round: round that it goes on from, None for a new run.
        about: of the run, such as its seed.
    """
    now, code, file = {**environment(), **about}, read_code(), run_dir / FILE
    if last_round is None:
        for old in run_dir.glob("changes*.patch"):
            old.unlink()
        write_json(file, now)
    else:
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        changed = {key: value for key, value in now.items() if before.get(key) != value}
        before["resumed"] = [*before.get("resumed", []), {"round": last_round, **changed}]
        write_json(file, before)
    if code.patch:
        with atomic_write(run_dir / ("changes.patch" if last_round is None else f"changes-{last_round}.patch")) as patch:
            patch.write(code.patch)


def environment() -> dict[str, Any]:
    """Return the commit, library versions, command and machine of this process."""
    code = read_code()
    return {
        "commit": code.commit,
        "dirty": code.dirty,
        "untracked": code.untracked,
        "code": code.reason,
        # `mtl` sets the variable: in a rank or a job of a scheduler the words of this process are others.
        "command": os.environ.get(COMMAND) or shlex.join(sys.orig_argv),
        "folder": os.getcwd(),  # noqa: PTH109 as the shell has it
        "host": platform.node(),
        **_machine(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def _machine() -> dict[str, Any]:
    """The versions and the machine, which stay the same while this process lives."""
    return {
        "mtl": _version("mtl", "mtl"),
        "python": platform.python_version(),
        "versions": {name: _version(name, module) for name, module in LIBRARIES.items()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu": _cpu(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def _cpu() -> str:
    """The model of the processor, where the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "Hardware")))
    return next(models, "") or platform.processor() or platform.machine()


def _version(name: str, module: str) -> str | None:
    version = getattr(sys.modules.get(module), "__version__", None)
    if version is not None:
        return str(version)
    try:
        return importlib.metadata.version(name)  # reads a file
    except importlib.metadata.PackageNotFoundError:
        return None
