"""The machine on which a file was timed, so that a number of milliseconds says what it is of."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from mtl import __version__

RUNTIMES = {".onnx": "onnxruntime", ".pte": "executorch"}


def processor() -> str:
    """The model of the processor, or of the board where Linux does not name the processor."""
    info = Path("/proc/cpuinfo")
    rows = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    said = {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    board = Path("/proc/device-tree/model")
    names = (
        said.get("model name"),
        said.get("Model"),
        board.read_text(encoding="utf-8", errors="replace") if board.is_file() else None,
    )
    return next((name.strip("\0 ") for name in names if name), platform.processor() or platform.machine())


def timing_machine(suffix: str, threads: int) -> dict[str, Any]:
    """What a latency is of: processor, threads, the runtime of files that end in `suffix`, and versions."""
    runtime = RUNTIMES[suffix]
    versions = {name: _version(name) for name in ("numpy", "torch", runtime)}
    return {
        "processor": processor(),
        "threads": threads,
        "runtime": f"{runtime} {versions[runtime]}",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions | {"mtl": __version__, "python": platform.python_version()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
