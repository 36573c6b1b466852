"""Exported files: what is written into them beside the graph, and how they are opened."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtl.edge.extras import require

PREFIX = "mtl."


@dataclass(frozen=True)
class DeviceFacts:
    """What a program that runs the file must know, in the file's metadata as JSON under `mtl.<name>`.

    tasks: names of the columns of the scores; thresholds: yes is a score above its task's; image_shape: [channels, height, width];
    crop: (top, left, height, width) that is cut out of a picture before it is resized to that shape, None for all of it;
    precision: float32 or int8; mirror: whether scores and embedding are means over the image and its mirror image, which the graph
    makes itself; version: of mtl; run, round, client: where the model comes from.
    """

    tasks: Sequence[str]
    thresholds: Sequence[float]
    image_shape: Sequence[int]
    crop: Sequence[int] | None
    precision: str
    mirror: bool
    version: str
    run: str
    round: int
    client: int | None

    def as_metadata(self) -> dict[str, str]:
        return {f"{PREFIX}{name}": json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> "DeviceFacts":
        """Raises ValueError where the file is not one of mtl's."""
        names = list(cls.__dataclass_fields__)
        missing = [name for name in names if PREFIX + name not in metadata]
        if missing:
            raise ValueError(
                f"the metadata must have {', '.join(PREFIX + name for name in names)}, and lack {', '.join(missing)}"
            )
        return cls(**{name: json.loads(metadata[PREFIX + name]) for name in names})


def require_file(path: Path) -> None:
    if path.suffix not in (".onnx", ".pte"):
        raise ValueError(f"an exported file must be named .onnx or .pte, got {path}")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")


def open_onnx(model: Path | bytes, *, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU. Raises ValueError where the file is torn or no ONNX model."""
    runtime = require("onnxruntime", "onnxruntime")
    errors = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    given = str(model) if isinstance(model, Path) else model
    try:
        return runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.InvalidArgument, errors.Fail, errors.NotImplemented) as error:
        name = model if isinstance(model, Path) else "the model"
        raise ValueError(f"{name} must be a whole ONNX model that ONNX Runtime knows, got: {error}") from error
