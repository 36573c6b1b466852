"""Every architecture goes to a device with its scores, and with an embedding where its trunk gives one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from mtl.edge import export
from mtl.edge.export import at_once
from mtl.edge.files import DeviceFacts
from mtl.run.load import load_run
from mtl.trained.export import ExportOptions, export_run
from mtl.trained.scoring import load_data
from tests.edge.conftest import Train

ARCHITECTURES = {
    "cross_stitch": ["architecture.groups=2"],
    "soft_sharing": ["architecture.groups=2", "architecture.num_bases=2"],
    "grouped": ["architecture.groups=2"],
    "mtan": [],
    "mmoe": ["architecture.num_experts=2", "architecture.width=8"],
    "dselect_k": ["architecture.num_experts=4", "architecture.num_selected=2", "architecture.width=8"],
    "cgc": ["architecture.width=8"],
    "ple": ["architecture.width=8"],
}


QUICK = ("cross_stitch", "dselect_k")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_an_architecture_scores_in_its_file_as_in_the_run(trained: Train, tmp_path: Path, name: str) -> None:
    run_dir = trained("mode=centralised", f"architecture={name}", "rounds=1", "evaluate_every=1", *ARCHITECTURES[name])
    done = export_run(run_dir, out=tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(done.path))
    assert [output.name for output in session.get_outputs()] == ["scores"]
    assert (session.get_inputs()[0].shape[0], session.get_outputs()[0].shape) == ("N", ["N", 4])
    data = load_data(load_run(run_dir))
    (scores,) = session.run(None, {"images": data.images[data.split.test].numpy()})
    np.testing.assert_allclose(scores, np.load(run_dir / "predictions.npz")["scores"], rtol=1e-4, atol=1e-4)
    assert done.parity.embeddings is None


def test_so_does_its_int8_file(trained: Train, tmp_path: Path) -> None:
    words = ("mode=centralised", "architecture=mmoe", "rounds=1", "evaluate_every=1", *ARCHITECTURES["mmoe"])
    done = export_run(trained(*words), ExportOptions(int8=True), out=tmp_path / "model.onnx")
    assert done.parity.cosine >= 0.95


def test_without_the_mirror_image_a_file_scores_the_picture_alone(trained: Train, tmp_path: Path) -> None:
    run_dir = trained("mode=centralised")
    both = export_run(run_dir, out=tmp_path / "both.onnx")
    done = export_run(run_dir, ExportOptions(mirror=False), out=tmp_path / "model.onnx")
    assert 2 * done.flops == both.flops
    session = onnxruntime.InferenceSession(str(done.path))
    assert not DeviceFacts.of_metadata(session.get_modelmeta().custom_metadata_map).mirror
    run = load_run(run_dir)
    data = load_data(run)
    images = data.images[data.split.test]
    alone, mirrored = (session.run(["scores"], {"images": view.numpy()})[0] for view in (images, images.flip(-1)))
    # The mean over both views is what the run said.
    np.testing.assert_allclose((alone + mirrored) / 2, run.objective.scores(run.model, images), rtol=1e-4, atol=1e-4)


def test_a_file_is_scored_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Session:
        def run(self, outputs: None, inputs: dict[str, Any]) -> list[Any]:
            sizes.append(len(inputs["images"]))
            return [inputs["images"].sum((2, 3))]

    monkeypatch.setattr(export, "open_onnx", lambda *_, **__: Session())
    images = torch.rand(150, 3, 32, 32)
    (sums,) = export.onnx_predict(b"")(images)
    assert sizes == [64, 64, 22]
    torch.testing.assert_close(sums, images.sum((2, 3)))


def test_a_check_scores_as_many_images_at_once_as_fit_whatever_their_number() -> None:
    assert [at_once(shape) for shape in ((3, 32, 32), (1, 56, 46), (3, 224, 224), (3, 1080, 1920))] == [64, 64, 3, 2]
