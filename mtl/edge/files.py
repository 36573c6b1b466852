"""Exported files: their metadata, and how they are opened."""

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
    """What a program that runs the file must know; in the file's metadata as JSON, under `mtl.<name>`.

    Attributes:
        tasks: names of the columns of the scores; empty for a detector.
        thresholds: of each task; a score above it means yes.
        image_shape: [channels, height, width].
        picture: the fields of a `PictureRule`, by which a picture becomes such an image; None where images are no pictures.
        precision: float32 or int8.
        mirror: whether the graph averages scores and embeddings over the image and its mirror image.
        flops: FLOPs of an image in this graph (FLOP = 2 MAC); of both views with `mirror`.
        version: version of mtl.
        run: run directory of the model.
        round: round of the model.
        client: client whose model it is, None for the global model.
        finder: how faces are found and compared, None without a detector.
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
        """Return the metadata of the file: JSON by `mtl.<name>`."""
        return {f"{PREFIX}{name}": json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> "DeviceFacts":
        """Return the facts in a file's metadata.

        Raises:
            ValueError: a fact is missing: the file was not written by mtl.
        """
        names = list(cls.__dataclass_fields__)
        missing = [name for name in names if PREFIX + name not in metadata]
        if missing:
            raise ValueError(
                f"the metadata must have {', '.join(PREFIX + name for name in names)}, and lack {', '.join(missing)}"
            )
        return cls(**{name: json.loads(metadata[PREFIX + name]) for name in names})


def check_output(option: str, path: Path) -> None:
    """Check that a file can be written at `path`, before the work that makes it. `option` names the path in messages.

    Raises:
        ValueError: `path` is a folder, its folder does not exist, or it cannot be written to.
    """
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
    """Raise ValueError where `path` is not an existing .onnx or .pte file."""
    if path.suffix not in (".onnx", ".pte"):
        raise ValueError(f"an exported file must be named .onnx or .pte, got {path}")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")


def fixed_input(session: Any, name: object) -> tuple[str, tuple[int, ...], str]:
    """Return name, shape [c, height, width] and element type of the only input of an ONNX Runtime session.

    Args:
        session: the session.
        name: name of the file, for errors.

    Raises:
        ValueError: the session has several inputs, an axis other than the first is open, or the first is neither 1 nor open.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ValueError(f"{name} must have one input, images [N, c, H, W], got {len(inputs)}")
    (images,) = inputs
    batch, *shape = images.shape or [None]
    shape_text = "[" + ", ".join(str(side) for side in images.shape) + "]"
    if not shape or any(not isinstance(side, int) for side in shape):
        raise ValueError(
            f"{name} must take images of one size: all axes but the first of its input must be numbers, got {shape_text}"
        )
    if isinstance(batch, int) and batch != 1:
        raise ValueError(
            f"{name} must take one image or any number: the first axis of its input must be 1 or open, got {shape_text}"
        )
    if images.type not in ("tensor(uint8)", "tensor(float)"):
        raise ValueError(f"{name} must take uint8 or float32, got {images.type}")
    return images.name, tuple(shape), images.type


def open_onnx(model: Path | bytes, *, threads: int = 1) -> Any:
    """Return an ONNX Runtime session on the CPU.

    Raises:
        ValueError: the file is damaged or not an ONNX model.
    """
    runtime = require("onnxruntime", "onnxruntime")
    errors = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.InvalidArgument, errors.Fail, errors.NotImplemented) as error:
        name = model if isinstance(model, Path) else "the model"
        raise ValueError(f"{name} must be a whole ONNX model that ONNX Runtime knows, got: {error}") from error
