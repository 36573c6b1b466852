"""Exported files: what is written into them beside the graph, and how they are opened."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtl.edge.extras import require

PREFIX = "mtl."


@dataclass(frozen=True)
class DeviceFacts:
    """What a program that runs the file must know, in the file's metadata as JSON under `mtl.<name>`.

    tasks: names of the columns of the scores, none of a detector; thresholds: yes is a score above its task's; image_shape: [channels,
    height, width]; picture: how a picture becomes such an image, a `PictureRule`, None where images are no pictures; precision: float32
    or int8; mirror: whether scores and embedding are means over the image and its mirror image, which the graph makes itself; flops: of
    one image by this graph (FLOP = 2 MAC), both views where it makes two; version: of mtl; run, round, client: where the model comes
    from; finder: None, or how faces are found and compared (`deploy_faces.finder_facts`).
    """

    tasks: Sequence[str]
    thresholds: Sequence[float]
    image_shape: Sequence[int]
    picture: Mapping[str, Any] | None
    precision: str
    mirror: bool
    flops: int
    version: str
    run: str
    round: int
    client: int | None
    finder: Mapping[str, Any] | None = None

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


def check_output(option: str, path: Path) -> None:
    """Raises ValueError where no file can be written at `path`, before the work that makes it. option: what the user calls it."""
    if path.is_dir():
        raise ValueError(f"{option} must be a file, got the folder {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{option} must be in a folder that exists, got {path}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{option} must be in a folder that can be written to, got {path}: {error.strerror}") from error


def require_file(path: Path) -> None:
    if path.suffix not in (".onnx", ".pte"):
        raise ValueError(f"an exported file must be named .onnx or .pte, got {path}")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")


def fixed_input(session: Any, name: object) -> tuple[str, tuple[int, ...], str]:
    """Name, shape [c, height, width] and element type of the only input of an ONNX Runtime session, for one image.

    Raises ValueError where there are several, where an axis other than the first is left open, or where the first is not one or open.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ValueError(f"{name} must have one input, images [N, c, H, W], got {len(inputs)}")
    (given,) = inputs
    batch, *shape = given.shape or [None]
    said = "[" + ", ".join(str(side) for side in given.shape) + "]"
    if not shape or any(not isinstance(side, int) for side in shape):
        raise ValueError(f"{name} must take images of one size: all axes but the first of its input must be numbers, got {said}")
    if isinstance(batch, int) and batch != 1:
        raise ValueError(f"{name} must take one image or any number: the first axis of its input must be 1 or open, got {said}")
    if given.type not in ("tensor(uint8)", "tensor(float)"):
        raise ValueError(f"{name} must take uint8 or float32, got {given.type}")
    return given.name, tuple(shape), given.type


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
