"""A run that finds faces on a device: detector and recogniser against `mtl`'s own, with a script that has no torch."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from mtl.data.faces import orl
from mtl.data.warp import crop_boxes
from mtl.edge.files import DeviceFacts
from mtl.faces.gallery import Gallery
from mtl.run.load import load_run
from mtl.run.train import train
from mtl.trained import recognise
from mtl.trained.enrol import enrol
from mtl.trained.export import Exported, ExportOptions, export_run
from mtl.trained.export_faces import PADDING, check_scene, face_finder
from mtl.trained.recognise import Recogniser
from tests.learning.test_detection import tiny

SCRIPTS = Path(__file__).parents[2] / "experiments" / "deploy"
SCENE = (128, 128)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny("rounds=1", "evaluate_every=1", "detection.confidence=0.05"), folder)
    return folder


@pytest.fixture(scope="module")
def done(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_run(run, ExportOptions(scene=SCENE), out=tmp_path_factory.mktemp("files") / "faces.onnx")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("find_faces")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of two photos that fill a scene, so that nothing is repeated at its border."""
    folder, faces = tmp_path_factory.mktemp("people"), orl(image_size=None)
    for person in range(2):
        (folder / f"p{person}").mkdir()
        for number in range(2):
            picture = Image.fromarray(faces.images[10 * person + number, 0].numpy()).resize(SCENE[::-1])
            picture.save(folder / f"p{person}" / f"{number}.png")
    return folder


def test_both_files_say_what_they_are(run: Path, done: Exported) -> None:
    assert done.detector is not None
    assert done.detector.path == done.path.with_name("faces_detector.onnx")
    assert done.detector.difference < 1e-3
    detector, recogniser = (onnxruntime.InferenceSession(str(path)) for path in (done.detector.path, done.path))
    assert [output.name for output in detector.get_outputs()] == ["maps_1", "maps_2"]  # 128 is halved once, to 64
    assert detector.get_inputs()[0].shape == ["N", 1, 128, 128]
    facts = [DeviceFacts.of_metadata(session.get_modelmeta().custom_metadata_map) for session in (detector, recogniser)]
    assert facts[0].finder == facts[1].finder
    assert facts[1].finder is not None
    assert facts[1].finder["model"] == face_finder(load_run(run)).fingerprint()
    assert facts[1].finder["padding"] == PADDING == recognise.PADDING
    assert (facts[0].tasks, facts[1].tasks) == ([], list(load_run(run).tasks))
    # A face and its mirror image; a scene and its half, which is a quarter of it (see test_detection for the count by hand).
    separable = 8 * 9 + 8 * 8
    trunk, pyramid = 32 * 32 * 8 * 9 + 16 * 16 * 8 * 8 * 9, 256 * 64 + 416 * separable + 256 * 8 * 5
    assert facts[0].flops == (4 + 1) * 2 * (trunk + pyramid)


def test_a_device_finds_and_embeds_the_faces_that_the_model_does(
    run: Path, done: Exported, script: ModuleType, photos: Path
) -> None:
    model, files = Recogniser.load(run), script.FaceFiles(done.path)
    num_faces = 0
    for path in sorted(photos.glob("*/*.png")):
        faces, embeddings = model.faces(model.read(path, 640))
        boxes, scores = files.find(files.read(path))
        assert len(boxes) == len(faces)
        np.testing.assert_allclose(boxes, faces.boxes.numpy(), atol=1e-2)
        np.testing.assert_allclose(scores, faces.scores.numpy(), atol=1e-4)
        if len(boxes):
            # The crops are rounded to whole pixels on the device, as those that the subtasks were trained on.
            crops = model.finder.crops(model.read(path, 640).image, faces.boxes)
            rounded = model.finder.embed((crops * 255).round() / 255)
            cosines = [(files.embed(files.read(path), boxes) * one.numpy()).sum(1) for one in (rounded, embeddings)]
            assert cosines[0].min() > 0.9999
            assert cosines[1].min() > 0.995
        num_faces += len(boxes)
    assert num_faces


def test_a_crop_is_that_of_the_model(script: ModuleType) -> None:
    pixels = torch.randint(0, 256, (1, 60, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for box in ([10.0, 5.0, 70.0, 55.0], [-4.0, -2.0, 20.0, 30.0], [30.2, 20.7, 38.1, 29.9]):
        expected = crop_boxes(pixels[None].float(), torch.tensor([box]), (28, 23), margin=0.15)[0]
        np.testing.assert_allclose(script._crop(pixels.numpy(), np.array(box), (28, 23), 0.15, 8), expected, atol=0.02)


def test_enrolling_and_recognising_run_without_torch(run: Path, done: Exported, photos: Path, tmp_path: Path) -> None:
    forbid = (
        "sys.modules.update(torch=None, mtl=None); sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0])"
    )
    code = f"import runpy, sys; {forbid}; runpy.run_path(sys.argv[0], run_name='__main__')"

    def call(*words: str) -> str:
        command = [sys.executable, "-c", code, str(SCRIPTS / "find_faces.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    device_gallery, gallery_path = tmp_path / "own.npz", tmp_path / "theirs.npz"
    assert "2 people, 4 photos" in call(
        *("enrol", str(done.path), "--gallery", str(photos), "--output", str(device_gallery), "--threshold", "-1")
    )
    enrol(photos, run, gallery_path)
    gallery = Gallery.load(gallery_path)
    with np.load(device_gallery) as file:
        assert (file["names"].tolist(), str(file["model"])) == (list(gallery.names), gallery.model)
        assert file["embeddings"].shape == gallery.embeddings.shape
    photo = photos / "p0" / "0.png"
    for made in (device_gallery, gallery_path):
        assert str(photo) in call("recognise", str(done.path), str(photo), "--gallery", str(made))


def test_what_cannot_be_exported_for_faces_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"scene must be \(height, width\), each a multiple of 32 and at least 64, got \(100, 640\)"
    ):
        check_scene((100, 640))
    with pytest.raises(ValueError, match=r"int8 cannot be had for a run of mode=detection"):
        export_run(run, ExportOptions(int8=True), out=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
