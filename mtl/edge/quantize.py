"""Eight-bit integers for weights and activations (Jacob et al., CVPR 2018): after training with calibration, or with training.

    x ~ scale (q - zero)      weights: int8, a scale for each output channel, zero = 0      activations: 8 bits, one scale

ONNX files are made by ONNX Runtime's static quantisation. It puts a quantise-dequantise pair around inputs, weights, biases and outputs of
every convolution and linear layer; its integer kernels need these pairs. The graph of torchao's x86 quantiser can be exported too, but has
no pair after a layer and no integer bias: ONNX Runtime then dequantises, computes in float, and is slower than with the float file.
torchao makes the ExecuTorch program and the training with simulated quantisation, after which the weights are quantised in the same way.
"""

import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl.base.compiling import slow_guards_allowed
from mtl.edge.extras import require
from mtl.edge.files import DeviceFacts

MIN_CALIBRATION = 32
CALIBRATION_BATCH = 32
ROOM = 6  # copies of a model that ONNX Runtime has on the disk at once, at most
# Seven of the eight bits: sums of two products of eight bits overflow on x86 processors without VNNI.
WEIGHT_RANGE = (-64, 63)


def check_calibration(images: Tensor) -> None:
    """Raise ValueError where there are too few images [M, c, H, W] to measure the range of the activations."""
    if len(images) < MIN_CALIBRATION:
        raise ValueError(f"calibration must have at least {MIN_CALIBRATION} images, got {len(images)}")


def quantize_onnx(model: bytes, images: Tensor, facts: DeviceFacts) -> bytes:
    """Return an ONNX model with 8-bit convolutions and linear layers.

    What comes before the trunk and after the embedding stays float: it is cheap, and scores depend on small differences. So does the first
    convolution: with one to three input channels the integer kernels are slower than the float ones. Without an embedding only convolutions
    are quantised.

    Args:
        model: the float model.
        images: [M, c, H, W] for calibration, as the model takes them.
        facts: written to the metadata.

    Raises:
        ValueError: there are too few images.
    """
    check_calibration(images)
    onnx = require("onnx", "onnx")
    tools = require("onnxruntime.quantization", "onnxruntime")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_room(Path(folder), ROOM * len(model))
        plain, ready, small = (Path(folder, name) for name in ("plain.onnx", "ready.onnx", "small.onnx"))
        plain.write_bytes(model)
        tools.shape_inference.quant_pre_process(plain, ready, skip_symbolic_shape=True)
        graph = onnx.load(ready).graph
        embeds = any(output.name == "embeddings" for output in graph.output)
        tools.quantize_static(
            ready,
            small,
            _Calibration(tools, images),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"] if embeds else ["Conv"],
            nodes_to_exclude=[*(_behind_embedding(graph) if embeds else []), *_first_convolution(graph)],
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            reduce_range=True,  # WEIGHT_RANGE
        )
        proto = onnx.load(small)
    proto.producer_name, proto.producer_version = "mtl", ""
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, facts.as_metadata())
    content: bytes = proto.SerializeToString()
    return content


def _check_room(folder: Path, num_bytes: int) -> None:
    """Raises OSError where `folder` has no room: ONNX Runtime would fail later, by an error that names neither the disk nor the folder."""
    probe, block = folder / "probe", bytes(2**20)
    try:
        with probe.open("wb") as file:
            for _ in range(num_bytes // len(block) + 1):
                file.write(block)
        probe.unlink()
    except OSError as error:
        text = f"{error.strerror}; int8 needs {num_bytes:,} bytes for temporary files in the folder that TMPDIR names"
        raise OSError(error.errno, text, str(folder.parent)) from error


def _behind_embedding(graph: Any) -> list[str]:
    """Return the names of the nodes that the scores need and the embedding does not."""
    by_output = {name: node for node in graph.node for name in node.output}

    def needed(output: str) -> set[str]:
        seen: set[str] = set()
        todo = [output]
        while todo:
            node = by_output.get(todo.pop())
            if node is not None and node.name not in seen:
                seen.add(node.name)
                todo.extend(node.input)
        return seen

    return sorted(needed("scores") - needed("embeddings"))


def _first_convolution(graph: Any) -> list[str]:
    return [node.name for node in graph.node if node.op_type == "Conv"][:1]


def _Calibration(tools: Any, images: Tensor) -> Any:  # noqa: N802
    """Return a reader of calibration batches; its base class exists only where ONNX Runtime is installed."""

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    return Reader()


def simulate_int8(trunk: nn.Module, inputs: Tensor) -> nn.Module:
    """Return the graph of `trunk` with simulated quantisation of weights and activations, for training.

    The parameters keep their names. The ranges follow the activations during the training.

    Args:
        trunk: the float trunk.
        inputs: [2, c, H, W], an example of two or more.
    """
    pt2e = require("torchao.quantization.pt2e", "torchao")
    prepare = require("torchao.quantization.pt2e.quantize_pt2e", "torchao").prepare_qat_pt2e
    x86 = require("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", "torchao")
    with slow_guards_allowed():
        captured = torch.export.export(copy.deepcopy(trunk), (inputs,), dynamic_shapes=({0: torch.export.Dim("N")},)).module()
    config = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    low, high = WEIGHT_RANGE
    config = dataclasses.replace(config, weight=dataclasses.replace(config.weight, quant_min=low, quant_max=high))
    with slow_guards_allowed():
        simulated: nn.Module = prepare(captured, x86.X86InductorQuantizer().set_global(config))
    pt2e.allow_exported_model_train_eval(simulated)
    return simulated


def quantize_for_executorch(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the graph of `model` for one image, with convolutions and linear layers in XNNPACK's int8.

    Args:
        model: the float model.
        images: [M, c, H, W] for calibration.

    Raises:
        ValueError: there are too few images.
    """
    check_calibration(images)
    steps = require("torchao.quantization.pt2e.quantize_pt2e", "torchao")
    xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "executorch")
    quantizer = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    with slow_guards_allowed():
        prepared = steps.prepare_pt2e(torch.export.export(model, (images[:1],)).module(), quantizer)
        with torch.no_grad():
            for image in images:
                prepared(image[None])
        converted: nn.Module = steps.convert_pt2e(prepared)
    return converted
