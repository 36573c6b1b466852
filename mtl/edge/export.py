"""From a model to a file that runs without torch: ONNX for ONNX Runtime, or an ExecuTorch program with XNNPACK.

The graph is the one that `torch.export` captures. The number of images is the open axis `N` in ONNX, and 1 in ExecuTorch. What the
exporters write about the machine they ran on (source paths, stack traces) is removed.
"""

import copy
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.base.compiling import slow_guards_allowed
from mtl.edge.device_model import Deployed
from mtl.edge.extras import require
from mtl.edge.files import DeviceFacts, open_onnx
from mtl.models.cnn import ImageShape

OPSET = 20
TOLERANCE = 1e-4  # of a float file against the eager model: absolute, relative to the largest value where that is above 1
UNIT = 1e-5  # eps of a BatchNorm whose variance is 1 - UNIT
MAX_IMAGES, MAX_PIXELS = 64, 2**19  # that are scored in one call
Predict = Callable[[Tensor], tuple[Tensor, ...]]


class ExportError(ValueError):
    """The model cannot be exported, or the file's outputs differ from the model's."""


@dataclass(frozen=True)
class Parity:
    """How far a file's outputs are from the eager model's on real images.

    Attributes:
        scores: largest absolute difference of the scores.
        embeddings: that of the embeddings, None where there are none.
        cosine: smallest cosine between an embedding and its counterpart; without embeddings, between the scores of an image.
        images: number of images.
    """

    scores: float
    embeddings: float | None
    cosine: float
    images: int


def at_once(image_shape: Sequence[int]) -> int:
    """Return how many images are scored in one call, so that the memory of a check does not grow with the test images."""
    return min(max(MAX_PIXELS // math.prod(image_shape), 2), MAX_IMAGES)


def to_onnx(model: Deployed, image_shape: ImageShape, pixels: torch.dtype, facts: DeviceFacts) -> bytes:
    """Return a self-contained ONNX model: input `images` [N, c, H, W], outputs as the model names them.

    Args:
        model: the model.
        image_shape: (c, height, width) of the images.
        pixels: their type.
        facts: written to the metadata.

    Raises:
        ExportError: a layer has no counterpart in ONNX; the message names it.
    """
    require("onnxscript", "onnxscript")
    onnx = require("onnx", "onnx")
    captured = capture(_with_quick_norms(model), image_shape, pixels, batch=None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside the exporter
            program = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=["images"],
                output_names=list(model.outputs),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"the model cannot become ONNX: {_first_lines(error)}") from error
    assert program is not None
    proto = program.model_proto
    strip(proto)
    name_batch(proto)
    onnx.helper.set_model_props(proto, facts.as_metadata())
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


class _QuickGroupNorm(nn.Module):
    """A GroupNorm whose weight and bias are those of a BatchNorm, which ONNX Runtime applies in one operation rather than two."""

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("mean", torch.zeros(norm.num_channels))
        self.register_buffer("variance", torch.full((norm.num_channels,), 1 - UNIT))

    def forward(self, maps: Tensor) -> Tensor:
        """[N, c, h, w] -> [N, c, h, w]."""
        groups = F.instance_norm(maps.flatten(2).reshape(maps.shape[0], self.num_groups, -1), eps=self.eps)
        return F.batch_norm(groups.view(maps.shape), self.mean, self.variance, self.weight, self.bias, eps=UNIT)


def _with_quick_norms(model: Deployed) -> Deployed:
    """Return a copy of the model with `_QuickGroupNorm` in place of GroupNorm."""
    quick = copy.deepcopy(model)
    for parent in list(quick.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.GroupNorm) and layer.affine:
                setattr(parent, name, _QuickGroupNorm(layer))
    return quick


def capture(model: nn.Module, image_shape: ImageShape, pixels: torch.dtype, *, batch: int | None) -> torch.export.ExportedProgram:
    """Return the graph of a module for `batch` images, None for any number.

    Raises:
        ExportError: an operation cannot be captured; the message names the layer.
    """
    images = torch.zeros(batch or 2, *image_shape, dtype=pixels)
    shapes = None if batch else ({0: torch.export.Dim("N")},)
    try:
        with slow_guards_allowed():
            return torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export's errors share no base class
        raise ExportError(f"{_culprit(model, images)} cannot be captured for export: {_first_lines(error)}") from error


def to_executorch(model: nn.Module, image_shape: ImageShape, pixels: torch.dtype, facts: DeviceFacts) -> bytes:
    """Return an ExecuTorch program for one image, with XNNPACK's convolutions and linear layers.

    Its methods `mtl_<name>` return `facts` as JSON.

    Raises:
        ExportError: an operation cannot be captured; the message names the layer.
    """
    exir = require("executorch.exir", "executorch")
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    captured = capture(model, image_shape, pixels, batch=1)
    methods = {name.replace(".", "_"): value for name, value in facts.as_metadata().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lowered = exir.to_edge_transform_and_lower(captured, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods=methods)
        program = lowered.to_executorch()
    content: bytes = program.buffer
    return content


def name_batch(proto: Any) -> None:
    """Rename the number of images to `N` in all shapes; torch.export gives it a number that varies."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert symbol
    values = [part for graph in (proto.graph, *proto.functions) for part in graph.value_info]
    for value in (*values, *proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "N", axis.dim_param)


def strip(proto: Any) -> None:
    """Remove from an ONNX model what its exporter wrote about the code and the machine."""
    proto.producer_name, proto.producer_version, proto.doc_string = "mtl", "", ""
    del proto.metadata_props[:]
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        graph.doc_string = ""
        del graph.metadata_props[:]
        parts = [*graph.node, *graph.value_info]
        parts += [*graph.input, *graph.output, *graph.initializer] if graph is proto.graph else []
        for part in parts:
            part.doc_string = ""
            del part.metadata_props[:]


def onnx_predict(model: bytes, *, threads: int = 1) -> Predict:
    """Return a function from images [N, c, H, W] to the outputs of an ONNX file, by ONNX Runtime, in batches of `at_once`."""
    session = open_onnx(model, threads=threads)

    def predict(images: Tensor) -> tuple[Tensor, ...]:
        parts = [session.run(None, {"images": part.numpy()}) for part in images.split(at_once(images.shape[1:]))]
        return tuple(torch.cat([torch.from_numpy(one) for one in outputs]) for outputs in zip(*parts, strict=True))

    return predict


def executorch_predict(program: bytes) -> Predict:
    """Return a function from images [N, c, H, W] to the outputs of an ExecuTorch program, image by image."""
    runtime = require("executorch.runtime", "executorch")
    method = runtime.Runtime.get().load_program(program).load_method("forward")

    def predict(images: Tensor) -> tuple[Tensor, ...]:
        parts = [[part.clone() for part in method.execute([image[None]])] for image in images]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    return predict


def differences(predict: Predict, expected: Sequence[Tensor], images: Tensor) -> tuple[list[float], tuple[Tensor, ...]]:
    """Return the largest absolute difference of each output, and the outputs.

    The images are scored in batches, and the first one also alone.

    Args:
        predict: runs the file.
        expected: the eager model's outputs.
        images: [N, c, H, W], real ones.
    """
    outputs, single = predict(images), predict(images[:1])
    largest = [
        max(float((output - target).abs().max()), float((first - target[:1]).abs().max()))
        for output, target, first in zip(outputs, expected, single, strict=True)
    ]
    return largest, outputs


def compare(predict: Predict, expected: Sequence[Tensor], images: Tensor) -> Parity:
    """Compare a file with the eager model on real images.

    Args:
        predict: runs the file.
        expected: the eager model's scores [N, T] and, where there are any, embeddings [N, h].
        images: [N, c, H, W].
    """
    largest, outputs = differences(predict, expected, images)
    cosine = torch.cosine_similarity(outputs[-1], expected[-1], dim=1).min()
    return Parity(largest[0], largest[1] if len(largest) > 1 else None, float(cosine), len(images))


def check_float(largest: Mapping[str, float], expected: Sequence[Tensor], images: int) -> None:
    """Check that the outputs of a float file are those of the eager model, to rounding.

    Args:
        largest: largest difference of each output, by its name.
        expected: the eager model's outputs.
        images: number of images.

    Raises:
        ExportError: a difference is larger than `TOLERANCE` allows.
    """
    for (name, difference), values in zip(largest.items(), expected, strict=True):
        allowed = TOLERANCE * max(1.0, float(values.abs().max()))
        if not difference <= allowed:
            raise ExportError(
                f"the file's {name} must be within {allowed:.2g} of the model's, got {difference:.2g} on {images} images"
            )


def _culprit(model: nn.Module, images: Tensor) -> str:
    """Return the first layer, in call order, that cannot be captured by itself."""
    inputs: dict[str, tuple[Any, ...]] = {}
    names = {layer: name for name, layer in model.named_modules() if not list(layer.children())}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, arguments: inputs.setdefault(names[layer], arguments)) for layer in names
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, arguments in inputs.items():
        layer = model.get_submodule(name)
        try:
            with slow_guards_allowed():
                torch.export.export(layer, arguments)
        except Exception:  # noqa: BLE001
            return f"{name} ({type(layer).__name__})"
    return type(model).__name__


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])
