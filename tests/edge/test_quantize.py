"""Eight bits: what is in the file, and what is lost."""

import json
import resource
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from mtl.edge import export
from mtl.edge.device_model import DeviceModel
from mtl.edge.files import DeviceFacts
from mtl.edge.quantize import check_calibration, quantize_onnx, simulate_int8
from mtl.learning.quantized import train_quantized
from mtl.run.load import load_run
from mtl.trained.export import Exported, ExportOptions, export_run
from mtl.trained.scoring import load_data, predict_eager
from tests.edge.conftest import Train


def test_weights_are_int8_with_a_scale_for_each_channel(trained: Train, tmp_path: Path) -> None:
    done = export_run(trained("mode=centralised", "trunk.channels=[8,8]"), ExportOptions(int8=True), out=tmp_path / "model.onnx")
    graph = onnx.load(done.path).graph
    weights = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    }
    assert len(weights) == 2  # the second convolution and the embedding; the first and the heads stay float
    scales = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    by_name = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name in weights:
        assert by_name[scales[name]].shape == (8,)  # output channels
    metadata = onnxruntime.InferenceSession(str(done.path)).get_modelmeta().custom_metadata_map
    assert metadata["mtl.precision"] == '"int8"'


def test_an_int8_file_is_near_the_model(trained: Train, exported_int8: Exported) -> None:
    run_dir, done = trained("mode=centralised"), exported_int8
    run = load_run(run_dir)
    data = load_data(run)
    images = data.images[data.split.test]
    embeddings = onnxruntime.InferenceSession(str(done.path)).run(["embeddings"], {"images": images.numpy()})[0]
    expected = predict_eager(run, images)[1].numpy()
    error = np.abs(embeddings - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.1
    assert done.eager["rank1"] == json.loads((run_dir / "summary.json").read_text())["test/rank1"]


def test_the_same_calibration_gives_the_same_file(trained: Train, exported: Exported) -> None:
    data = load_data(load_run(trained("mode=centralised")))
    facts = DeviceFacts.of_metadata(onnxruntime.InferenceSession(str(exported.path)).get_modelmeta().custom_metadata_map)
    content, images = exported.path.read_bytes(), data.images[data.split.train]
    assert quantize_onnx(content, images, facts) == quantize_onnx(content, images, facts)


def test_a_full_folder_for_temporary_files_is_named_and_no_file_is_left(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, out = tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    out.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"int8 needs [\d,]+ bytes for temporary files in the folder that TMPDIR names"
        ) as failed:
            export_run(trained("mode=centralised"), ExportOptions(int8=True), out=out / "model.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.filename == str(temporary)
    assert not list(temporary.iterdir())
    assert not list(out.iterdir())


def test_a_small_calibration_set_is_refused() -> None:
    check_calibration(torch.zeros(32, 1, 4, 4))
    with pytest.raises(ValueError, match=r"calibration must have at least 32 images, got 31"):
        check_calibration(torch.zeros(31, 1, 4, 4))


def test_simulated_int8_is_near_and_keeps_the_names(trained: Train) -> None:
    run = load_run(trained("mode=centralised"))
    data = load_data(run)
    inputs = run.objective.inputs(data.images[:8])
    simulated = simulate_int8(run.model.trunk, inputs)
    with torch.no_grad():
        simulated(inputs)
        exact, rough = run.model.trunk(inputs), simulated(inputs)
    assert 0 < float((exact - rough).abs().max()) < 0.1 * float(exact.abs().max())
    assert {name for name, _ in simulated.named_parameters()} == {name for name, _ in run.model.trunk.named_parameters()}


def test_training_with_simulated_int8_changes_the_trunk_alone(
    trained: Train, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_3_13_0: list[str]
) -> None:
    run_dir = trained("mode=centralised")
    run = load_run(run_dir)
    learned = train_quantized(run.model, run.objective, load_data(run).pooled(), steps=6, learning_rate=0.01)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, learned.state_dict()[name]) == (not name.startswith("trunk.")), name
    handed: list[DeviceModel] = []
    monkeypatch.setattr(export, "to_onnx", lambda device, *_: (handed.append(device), exported.path.read_bytes())[1])
    done = export_run(run_dir, ExportOptions(int8=True, qat_steps=6), out=tmp_path / "model.onnx")
    assert done.file["balanced_accuracy"] is not None
    assert not torch.equal(handed[0].trunk.features[0].weight, run.model.trunk.features[0].weight)
