"""From a run directory to a file: what the file says, against what the run said when it was tested."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from mtl import __version__
from mtl.cli.main import main
from mtl.edge import export
from mtl.edge.device_model import DeviceModel
from mtl.edge.export import ExportError, to_onnx
from mtl.edge.files import DeviceFacts
from mtl.learning.checkpoints import CheckpointError
from mtl.metrics.scores import balanced_accuracy
from mtl.run.load import load_run
from mtl.trained.export import Exported, ExportOptions, export_run
from mtl.trained.scoring import load_data
from tests.edge.conftest import Train

DEPLOY = Path(__file__).parents[2] / "experiments" / "deploy" / "recognise.py"


def scores_of(path: Path, images: torch.Tensor) -> "np.typing.NDArray[np.float32]":
    scores: np.typing.NDArray[np.float32] = onnxruntime.InferenceSession(str(path)).run(["scores"], {"images": images.numpy()})[0]
    return scores


def images_of_the_test(run_dir: Path, client: int | None = None) -> torch.Tensor:
    data = load_data(load_run(run_dir, client=client))
    return data.images[data.split.test]


def check_against_the_run(run_dir: Path, done: Exported) -> None:
    expected = np.load(run_dir / "predictions.npz")["scores"]
    np.testing.assert_allclose(scores_of(done.path, images_of_the_test(run_dir)), expected, rtol=1e-4, atol=1e-4)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert done.file["rank1"] == summary["test/rank1"]
    assert done.file["balanced_accuracy"] == pytest.approx(summary["test/balanced_accuracy"])


def test_a_file_scores_the_test_images_as_the_run_did(trained: Train, exported: Exported) -> None:
    check_against_the_run(trained("mode=centralised"), exported)


def test_so_does_one_of_another_trunk_and_normalisation(trained: Train, tmp_path: Path) -> None:
    trunk = ("trunk=lenet", "trunk.channels=[4,6]", "heads=linear", "loss=bce")
    run_dir = trained("mode=federated", "normalise=per_image", "mirror=false", *trunk)
    check_against_the_run(run_dir, export_run(run_dir, out=tmp_path / "model.onnx"))


def test_a_file_holds_all_it_needs_and_nothing_of_the_machine(exported: Exported) -> None:
    done = exported
    assert [path.name for path in done.path.parent.iterdir()] == ["model.onnx"]
    content = done.path.read_bytes()
    assert done.num_bytes == len(content)
    for trace in (b".py", b"site-packages", str(Path.home()).encode(), b"stack_trace"):
        assert trace not in content
    session = onnxruntime.InferenceSession(str(done.path))
    facts = DeviceFacts.of_metadata(session.get_modelmeta().custom_metadata_map)
    assert (facts.tasks, facts.thresholds, facts.image_shape) == (["c0", "c1", "c2", "c3"], [0.0] * 4, [1, 16, 16])
    assert (facts.version, facts.precision, facts.mirror) == (__version__, "float32", True)
    assert facts.picture == {
        **{"colours": "L", "size": [16, 16], "crop": None, "orientation": "exif", "sixteen_bit": 257, "background": "black"},
        **{"resize": "box", "layout": "CHW", "values": "uint8"},
    }
    # 16x16: a convolution of stride 2 to 8 channels, an embedding of 8, four heads; the picture and its mirror image.
    assert facts.flops == done.flops == 2 * 2 * (8 * 8 * 8 * 9 + 8 * 8 * 8 * 8 + 8 * 4)
    images_input = session.get_inputs()[0]
    assert (images_input.type, images_input.shape) == ("tensor(uint8)", ["N", 1, 16, 16])
    assert [output.shape for output in session.get_outputs()] == [["N", 4], ["N", 8]]


def test_the_file_runs_without_torch(trained: Train, exported: Exported, pictures: Path, tmp_path: Path) -> None:
    run_dir, done = trained("mode=centralised"), exported
    picture = sorted((pictures / "c2").glob("*.png"))[0]
    forbid = "sys.modules.update(torch=None, mtl=None); sys.argv = sys.argv[1:]"
    code = f"import runpy, sys; {forbid}; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", code, str(DEPLOY), str(done.path), str(picture)]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    pixels = torch.from_numpy(np.array(Image.open(picture)))[None, None]
    scores = load_run(run_dir).objective.scores(load_run(run_dir).model, pixels)[0]
    best = int(scores.argmax())
    assert f"c{best} {scores[best]:.2f}" in printed


def test_a_file_that_differs_from_the_model_is_not_written(
    trained: Train, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = export.onnx_predict(exported.path.read_bytes())

    def off_by_a_little(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, embeddings = honest(images)
        return scores, embeddings * 1.001

    monkeypatch.setattr(export, "to_onnx", lambda *_: b"")
    monkeypatch.setattr(export, "onnx_predict", lambda _: off_by_a_little)
    with pytest.raises(ExportError, match=r"embeddings must be within .* of the model's, got"):
        export_run(trained("mode=centralised"), out=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_layer_without_counterpart_is_named(trained: Train) -> None:
    class Odd(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features if features.sum() > 0 else -features

    run = load_run(trained("mode=centralised"))
    run.model.trunk = torch.nn.Sequential(run.model.trunk, Odd())
    device = DeviceModel(run.model, run.objective.normalise)
    facts = DeviceFacts(run.tasks, [0.0] * 4, run.image_shape, None, "float32", False, 0, "0", "run", 1, None)
    with pytest.raises(ExportError, match=r"trunk.1 \(Odd\) cannot be captured"):
        to_onnx(device, run.image_shape, run.pixels, facts)


def test_what_stays_on_a_client_is_exported_for_that_client(trained: Train, tmp_path: Path) -> None:
    run_dir = trained("mode=local")
    with pytest.raises(ValueError, match=r"has one trunk for each client: the argument client must name one"):
        export_run(run_dir, out=tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"client must be in \[0, 1\], got 7"):
        export_run(run_dir, ExportOptions(client=7), out=tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"client must be left out where nothing stays"):
        export_run(trained("mode=centralised"), ExportOptions(client=0), out=tmp_path / "model.onnx")
    done = export_run(run_dir, ExportOptions(client=1), out=tmp_path / "model.onnx")
    facts = DeviceFacts.of_metadata(onnxruntime.InferenceSession(str(done.path)).get_modelmeta().custom_metadata_map)
    client_tasks = [f"c{t}" for t in range(4) if np.load(run_dir / "federation.npz")["assignment"][1, t]]
    assert facts.tasks == client_tasks
    # A subtask has one owner here, so the fused score is the owner's.
    expected = np.load(run_dir / "predictions.npz")["scores"][:, [int(name[1:]) for name in client_tasks]]
    np.testing.assert_allclose(scores_of(done.path, images_of_the_test(run_dir, 1)), expected, rtol=1e-4, atol=1e-4)


def test_calibrated_thresholds_are_the_best_of_the_validation_images(
    trained: Train, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = trained("mode=centralised")
    written_facts: list[DeviceFacts] = []

    def listening(device: DeviceModel, image_shape: object, pixels: object, facts: DeviceFacts) -> bytes:
        written_facts.append(facts)
        return exported.path.read_bytes()

    monkeypatch.setattr(export, "to_onnx", listening)
    export_run(run_dir, ExportOptions(thresholds="calibrated"), out=tmp_path / "model.onnx")
    (facts,) = written_facts
    run = load_run(run_dir)
    data = load_data(run)
    val = data.split.val
    scores, targets = run.objective.scores(run.model, data.images[val]), data.targets[val]
    for t, threshold in enumerate(facts.thresholds):
        accuracy = balanced_accuracy(scores[:, [t]] - threshold, targets[:, [t]], data.known[val][:, [t]])
        others = [balanced_accuracy(scores[:, [t]] - s - 1e-3, targets[:, [t]], data.known[val][:, [t]]) for s in scores[:, t]]
        assert float(accuracy) >= max(map(float, others)) - 1e-6
    with pytest.raises(ValueError, match=r"thresholds=calibrated needs validation images"):
        export_run(
            trained("mode=centralised", "split.val=0"), ExportOptions(thresholds="calibrated"), out=tmp_path / "other.onnx"
        )


def test_batch_statistics_cannot_go_to_a_device(trained: Train) -> None:
    run = load_run(trained("mode=centralised"))
    run.model.local_norms = ["trunk.features.1"]
    with pytest.raises(ValueError, match=r"norm must be group or frozen to run on a device, got local: trunk.features.1"):
        DeviceModel(run.model, run.objective.normalise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qat-steps", "3"], "qat_steps=3 needs int8"),
        (["--int8", "--qat-steps", "-1"], "qat_steps must be >= 0, got -1"),
        (["--out", "model.pte"], r"out must end in .onnx for onnx, got model.pte"),
        (["--int8", "--calibration", "20"], "calibration must have at least 32 images, got 20"),
        (["--out", "/nowhere/model.onnx"], "out must be in a folder that exists, got /nowhere/model.onnx"),
        (["--data-root", "/nowhere"], "data.root must hold one folder of images per class"),
    ],
)
def test_contradictory_options_end_with_a_message(
    trained: Train, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["export", str(trained("mode=centralised")), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_library_is_named(trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ValueError, match=r"executorch must be installed for this \(pip install executorch\)"):
        export_run(trained("mode=centralised"), ExportOptions(to="executorch"), out=tmp_path / "model.pte")
    assert not list(tmp_path.iterdir())


def test_where_a_file_cannot_be_written_is_said_before_the_work(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtl.trained.export.load_run", lambda *_, **__: pytest.fail("the run was loaded"))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=r"out must be a file, got the folder"):
        export_run(trained("mode=centralised"), out=tmp_path / "folder.onnx")
    with pytest.raises(ValueError, match=r"out must be in a folder that exists"):
        export_run(trained("mode=centralised"), out=tmp_path / "none" / "model.onnx")


def test_a_folder_that_is_no_run_is_refused(trained: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run directory must hold config.yaml"):
        load_run(tmp_path)
    run_dir = tmp_path / "run"
    shutil.copytree(trained("mode=centralised"), run_dir)
    for file in (run_dir / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is torn"):
        load_run(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(ValueError, match=r"must hold checkpoints/best.ckpt or checkpoints/last.ckpt"):
        load_run(run_dir)


def test_other_images_are_not_those_of_the_run(trained: Train, pictures: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved, ignore=shutil.ignore_patterns(".cache"))
    run_dir = trained("mode=centralised")
    assert len(load_data(load_run(run_dir), str(moved)).images) == 48
    Image.new("L", (16, 16), 9).save(next((moved / "c0").glob("*.png")))
    with pytest.raises(ValueError, match=r"data.root must hold the images that the run was trained on"):
        load_data(load_run(run_dir), str(moved))


def test_export_prints_what_was_checked(
    trained: Train, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(export, "to_onnx", lambda *_: exported.path.read_bytes())
    assert main(["export", str(trained("mode=centralised")), "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"{path}: {path.stat().st_size:,} bytes" in printed
    assert "rank1" in printed
    assert main(["latency", str(path), "--repeats", "20", "--warmup", "2"]) == 0
    assert "p50" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load(path))
