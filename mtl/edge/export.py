"""From a model to a file that runs without torch: ONNX for ONNX Runtime, or an ExecuTorch program with XNNPACK.

The graph is the one that `torch.export` captures; the number of images is left open in ONNX and one in ExecuTorch. What the exporters
write about the machine they ran on (source paths, stack traces) is left out.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.compiling import slow_guards_allowed
from mtl.edge.device_model import DeviceModel
from mtl.edge.extras import require
from mtl.edge.files import DeviceFacts, open_onnx
from mtl.models.cnn import ImageShape

OPSET = 20
TOLERANCE = 1e-4  # float against eager: absolute, and of the largest value where that is above one, whose rounding grows with it
UNIT = 1e-5  # what a BatchNorm adds to a variance of 1 - UNIT
Predict = Callable[[Tensor], tuple[Tensor, Tensor]]


class ExportError(ValueError):
    """The model cannot be exported, or the file does not do what the model does."""


@dataclass(frozen=True)
class Parity:
    """How far a file is from the eager model on real images. scores, embeddings: the largest absolute difference; cosine: the least
    cosine between an embedding and its counterpart; images: how many.
    """

    scores: float
    embeddings: float
    cosine: float
    images: int


def to_onnx(model: DeviceModel, image_shape: ImageShape, pixels: torch.dtype, facts: DeviceFacts) -> bytes:
    """One self-contained ONNX model: input `images` [N, c, H, W], outputs `scores` [N, T] and `embeddings` [N, h].

    Raises `ExportError` with the layer's name where one has no counterpart in ONNX.
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
                output_names=["scores", "embeddings"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"the model cannot become ONNX: {_first_lines(error)}") from error
    assert program is not None
    proto = program.model_proto
    strip(proto)
    onnx.helper.set_model_props(proto, facts.as_metadata())
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


class _QuickGroupNorm(nn.Module):
    """A GroupNorm whose weight and bias ONNX Runtime applies in one operation, as those of a BatchNorm, rather than in two."""

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("mean", torch.zeros(norm.num_channels))
        self.register_buffer("variance", torch.full((norm.num_channels,), 1 - UNIT))

    def forward(self, maps: Tensor) -> Tensor:
        groups = F.instance_norm(maps.flatten(2).reshape(maps.shape[0], self.num_groups, -1), eps=self.eps)
        return F.batch_norm(groups.view(maps.shape), self.mean, self.variance, self.weight, self.bias, eps=UNIT)


def _with_quick_norms(model: DeviceModel) -> DeviceModel:
    """A copy of the model with such norms."""
    quick = copy.deepcopy(model)
    for parent in list(quick.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.GroupNorm) and layer.affine:
                setattr(parent, name, _QuickGroupNorm(layer))
    return quick


def capture(model: nn.Module, image_shape: ImageShape, pixels: torch.dtype, *, batch: int | None) -> torch.export.ExportedProgram:
    """The graph of a module, for `batch` images, None for any number. Raises `ExportError` where an operation cannot be captured."""
    images = torch.zeros(batch or 2, *image_shape, dtype=pixels)
    shapes = None if batch else ({0: torch.export.Dim("N")},)
    try:
        with slow_guards_allowed():
            return torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export's errors share no base class
        raise ExportError(f"{_culprit(model, images)} cannot be captured for export: {_first_lines(error)}") from error


def to_executorch(model: nn.Module, image_shape: ImageShape, pixels: torch.dtype, facts: DeviceFacts) -> bytes:
    """An ExecuTorch program for one image, with XNNPACK's convolutions and linear layers; methods `mtl_<name>` return `facts` as JSON."""
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


def strip(proto: Any) -> None:
    """Leave out of an ONNX model what its exporter wrote about the code and the machine that it came from."""
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
    """images [N, c, H, W] to scores and embeddings, by ONNX Runtime."""
    session = open_onnx(model, threads=threads)

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        scores, embeddings = session.run(["scores", "embeddings"], {"images": images.numpy()})
        return torch.from_numpy(scores), torch.from_numpy(embeddings)

    return predict


def executorch_predict(program: bytes) -> Predict:
    """The same by ExecuTorch, image by image."""
    runtime = require("executorch.runtime", "executorch")
    method = runtime.Runtime.get().load_program(program).load_method("forward")

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [[part.clone() for part in method.execute([image[None]])] for image in images]
        return torch.cat([scores for scores, _ in pairs]), torch.cat([embedding for _, embedding in pairs])

    return predict


def compare(predict: Predict, expected: tuple[Tensor, Tensor], images: Tensor) -> Parity:
    """images: real ones, [N, c, H, W], all at once and the first alone; expected: the eager model's scores [N, T] and embeddings [N, h]."""
    scores, embeddings = predict(images)
    alone = predict(images[:1])
    differences = [
        max(float((got - want).abs().max()), float((one - want[:1]).abs().max()))
        for got, want, one in zip((scores, embeddings), expected, alone, strict=True)
    ]
    cosine = torch.cosine_similarity(embeddings, expected[1], dim=1).min()
    return Parity(differences[0], differences[1], float(cosine), len(images))


def check_float(parity: Parity, expected: tuple[Tensor, Tensor]) -> None:
    """Raises `ExportError` where a float file is not the eager model. expected: its scores and embeddings."""
    found = {"scores": (parity.scores, expected[0]), "embeddings": (parity.embeddings, expected[1])}
    for name, (difference, values) in found.items():
        allowed = TOLERANCE * max(1.0, float(values.abs().max()))
        if not difference <= allowed:
            raise ExportError(
                f"the file's {name} must be within {allowed:.2g} of the model's, got {difference:.2g} on {parity.images} images"
            )


def _culprit(model: nn.Module, images: Tensor) -> str:
    """The first layer, in the order of the call, that cannot be captured by itself."""
    inputs: dict[str, tuple[Any, ...]] = {}
    names = {layer: name for name, layer in model.named_modules() if not list(layer.children())}
    hooks = [layer.register_forward_pre_hook(lambda layer, given: inputs.setdefault(names[layer], given)) for layer in names]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, given in inputs.items():
        layer = model.get_submodule(name)
        try:
            with slow_guards_allowed():
                torch.export.export(layer, given)
        except Exception:  # noqa: BLE001
            return f"{name} ({type(layer).__name__})"
    return type(model).__name__


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])
