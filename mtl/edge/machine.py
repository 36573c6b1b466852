"""The machine on which a file was timed; it is recorded with every latency."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from mtl import __version__

RUNTIMES = {".onnx": "onnxruntime", ".pte": "executorch"}


def processor() -> str:
    """Return the model of the processor, or of the board where Linux does not name the processor."""
    info = Path("/proc/cpuinfo")
    rows = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    board = Path("/proc/device-tree/model")
    names = (
        fields.get("model name"),
        fields.get("Model"),
        board.read_text(encoding="utf-8", errors="replace") if board.is_file() else None,
    )
    return next((name.strip("\0 ") for name in names if name), platform.processor() or platform.machine())


def timing_machine(suffix: str, threads: int) -> dict[str, Any]:
    """Return processor, threads, versions, and the runtime of files that end in `suffix`."""
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
