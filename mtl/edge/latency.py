"""Latency of one image at a time (the single-stream scenario of MLPerf Tiny, Banbury et al. 2021)."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl.edge.extras import require
from mtl.edge.files import fixed_input, open_onnx, require_file

Run = Callable[[], Any]
TURNS = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds for an image.

    Attributes:
        p50: median over the repeats.
        p90: 90th percentile.
        repeats: number of timed calls.
    """

    p50: float
    p90: float
    repeats: int


def measure(runs: Mapping[str, Run], *, warmup: int = 20, repeats: int = 200) -> dict[str, Latency]:
    """Time calls and return their latencies, by name.

    Several calls take turns, so that other work of the machine affects all of them.

    Args:
        runs: the calls, by name.
        warmup: number of first calls that are not timed.
        repeats: number of timed calls of each.

    Raises:
        ValueError: `warmup` is negative, or `repeats` below 1.
    """
    for name, value, least in (("warmup", warmup, 0), ("repeats", repeats, 1)):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    turn = max(repeats // TURNS, 1)
    while len(min(seconds.values(), key=len)) < repeats:
        for name, run in runs.items():
            # Each turn begins with untimed calls, because the cache holds the weights of the others.
            for _ in range(warmup if not seconds[name] else min(warmup, 3)):
                run()
            for _ in range(min(turn, repeats - len(seconds[name]))):
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
    return {name: _latency(times) for name, times in seconds.items()}


def measure_file(path: Path, *, threads: int = 1, warmup: int = 20, repeats: int = 200) -> Latency:
    """Return the latency of an exported file on its runtime; arguments as in `measure`, errors as in `file_call`."""
    return measure({"file": file_call(path, threads=threads)}, warmup=warmup, repeats=repeats)["file"]


def file_call(path: Path, *, threads: int = 1, seed: int = 0) -> Run:
    """Return a call that runs one random image through an exported file.

    Args:
        path: .onnx for ONNX Runtime or .pte for ExecuTorch.
        threads: number of threads of the runtime.
        seed: seed of the image.

    Raises:
        ValueError: the file is missing, damaged or of another kind, or the runtime is not installed.
    """
    if threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")
    require_file(path)
    if path.suffix == ".pte":
        return _executorch_call(path, threads, seed)
    session = open_onnx(path, threads=threads)
    name, shape, kind = fixed_input(session, path)
    image = _random_image(shape, kind == "tensor(uint8)", seed).numpy()
    return lambda: session.run(None, {name: image})


def eager_call(model: torch.nn.Module, image: Tensor) -> Run:
    """Return a call that runs one image [1, c, H, W] through a torch module, on torch's threads."""

    def run() -> None:
        with torch.inference_mode():
            model(image)

    return run


def _latency(seconds: list[float]) -> Latency:
    p50, p90 = np.percentile(np.array(seconds) * 1e3, [50, 90]).tolist()
    return Latency(p50, p90, len(seconds))


def _random_image(shape: tuple[int, ...], as_bytes: bool, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    if as_bytes:
        return torch.randint(0, 256, (1, *shape), generator=rng, dtype=torch.uint8)
    return torch.randn(1, *shape, generator=rng)


def set_executorch_threads(threads: int) -> None:
    """Set the number of threads of ExecuTorch's pool, which XNNPACK uses.

    Raises:
        ValueError: this version of ExecuTorch cannot set it.
    """
    pool = require("executorch.extension.pybindings.portable_lib", "executorch")
    reset, count = (getattr(pool, name, None) for name in ("_unsafe_reset_threadpool", "_threadpool_get_thread_count"))
    if reset is None or count is None:
        raise ValueError(f"threads={threads} cannot be set: this executorch has no call for its thread pool; 1.0 and later have")
    if count() != threads:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the call is marked as experimental
            reset(threads)
    if count() != threads:
        raise ValueError(f"threads={threads} cannot be set: ExecuTorch's pool has {count()}")


def _executorch_call(path: Path, threads: int, seed: int) -> Run:
    runtime = require("executorch.runtime", "executorch")
    set_executorch_threads(threads)
    try:
        method = runtime.Runtime.get().load_program(path).load_method("forward")
    except RuntimeError as error:
        raise ValueError(f"{path} must be an ExecuTorch program with the method forward: {error}") from error
    meta = method.metadata.input_tensor_meta(0)
    image = _random_image(tuple(meta.sizes()[1:]), meta.dtype() == 0, seed)
    return lambda: method.execute([image])
