"""Galleries and photos through the command line, with a model that has hardly been trained and calls many things a face."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.cli.main import main
from mtl.data.faces import orl
from mtl.faces.gallery import Gallery
from mtl.run.train import train
from mtl.trained.recognise import Recogniser, name_faces
from tests.learning.test_detection import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Anything above .05 counts as a face."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny("rounds=1", "evaluate_every=1", "detection.confidence=0.05"), folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of three photos."""
    folder, faces = tmp_path_factory.mktemp("gallery"), orl(image_size=None)
    for person in range(2):
        (folder / f"p{person}").mkdir()
        for number in range(3):
            picture = Image.fromarray(faces.images[10 * person + number, 0].numpy())
            picture.save(folder / f"p{person}" / f"{number}.{('png', 'jpg', 'webp')[number]}")
    return folder


@pytest.fixture(scope="module")
def gallery(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("galleries") / "g.npz"
    assert main(["enrol", "--gallery", str(photos), "--model", str(run), "--output", str(file)]) == 0
    return file


def test_a_gallery_holds_every_person_and_photo(gallery: Path, run: Path) -> None:
    made = Gallery.load(gallery)
    assert made.names == ("p0", "p1")
    assert made.files == tuple(f"p{p}/{n}.{kind}" for p in range(2) for n, kind in enumerate(("png", "jpg", "webp")))
    assert torch.allclose(made.embeddings.norm(dim=1), torch.ones(6))
    assert made.model == Recogniser.load(run).finder.fingerprint()
    assert made.calibration.kept is not None


def test_recognise_writes_pictures_and_json_for_photos_of_every_kind(
    gallery: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two photos of one name, one grey and one with transparency, and one that cannot be read.
    (tmp_path / "in").mkdir()
    with Image.open(photos / "p0" / "0.png") as picture:
        picture.convert("RGBA").save(tmp_path / "in" / "0.png")
    (tmp_path / "in" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    words = ["recognise", str(tmp_path / "in"), str(photos / "p1" / "*"), str(photos / "p0" / "0.png")]
    assert main([*words, "--gallery", str(gallery), "--output", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    content = json.loads((tmp_path / "out" / "recognised.json").read_text())
    assert [photo["picture"] for photo in content["photos"]] == ["0.png", "0-2.png", "1.png", "2.png", "0-3.png"]
    assert [entry["photo"] for entry in content["left_out"]] == [str(tmp_path / "in" / "torn.jpg")]
    assert "torn.jpg cannot be decoded" in err
    assert "Cosine" in out
    made = Gallery.load(gallery)
    for photo in content["photos"]:
        with Image.open(tmp_path / "out" / photo["picture"]) as picture:
            assert picture.size == (92, 112)
        for face in photo["faces"]:
            assert face["name"] in (None, "p0", "p1")
            assert (face["name"] is None) == (face["cosine"] < made.calibration.threshold)


def test_no_face_is_an_answer(run: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = tmp_path / "strict"
    shutil.copytree(run, strict)
    text = (strict / "config.yaml").read_text()
    (strict / "config.yaml").write_text(text.replace("confidence: 0.05", "confidence: 0.999"))
    Image.new("L", (100, 80), 90).save(tmp_path / "wall.png")
    words = ["recognise", str(tmp_path / "wall.png"), "--gallery", str(gallery), "--model", str(strict)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert "no face found" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "recognised.json").read_text())["photos"][0]["faces"] == []


def test_a_gallery_goes_on_without_photos_and_people_that_cannot_be_used(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "g")
    (tmp_path / "g" / "p0" / "torn.png").write_bytes(b"")
    (tmp_path / "g" / "nobody").mkdir()
    words = ["enrol", "--gallery", str(tmp_path / "g"), "--model", str(run), "--output", str(tmp_path / "g.npz")]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "torn.png cannot be decoded" in err
    assert "not enrolled, for want of a photo with a face: nobody" in err
    assert Gallery.load(tmp_path / "g.npz").names == ("p0", "p1")


def test_wrong_input_is_refused_with_the_reason(
    run: Path, photos: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train(tiny("rounds=1", "evaluate_every=1", "seed=1"), other)
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "p0" / "0.png", tmp_path / "in" / "0.png")
    (tmp_path / "torn.png").write_bytes(b"")
    photo, empty = str(tmp_path / "in" / "0.png"), tmp_path / "empty"
    empty.mkdir()
    cases = (
        (["recognise", photo, "--gallery", str(gallery), "--model", str(other)], "is of another; enrol again"),
        (["recognise", photo, "--gallery", str(tmp_path / "no.npz")], "does not exist; mtl enrol makes one"),
        (
            ["recognise", str(tmp_path / "no.jpg"), "--gallery", str(gallery)],
            "PHOTO must be a photo, a folder of them or a pattern",
        ),
        (["recognise", str(tmp_path / "torn.png"), "--gallery", str(gallery)], "got none among 1"),
        (["recognise", photo, "--gallery", str(gallery), "--output", str(tmp_path / "in")], "where no photo is overwritten"),
        (["enrol", "--gallery", str(empty), "--model", str(run)], "a folder with a folder of photos for each person, got"),
        (["enrol", "--gallery", str(tmp_path / "none"), "--model", str(run)], "no such folder"),
        (["enrol", "--gallery", str(photos), "--model", str(empty)], "run directory must hold config.yaml, got"),
    )
    before = (tmp_path / "in" / "0.png").read_bytes()
    for words, message in cases:
        output = [] if "--output" in words else ["--output", str(tmp_path / f"out-{words[0]}")]
        assert main([*words, *output]) == 2
        assert message in capsys.readouterr().err.replace("\n", " "), words
    assert (tmp_path / "in" / "0.png").read_bytes() == before


def test_boxes_are_in_pixels_of_the_photo_however_much_it_was_averaged_down(run: Path, gallery: Path, tmp_path: Path) -> None:
    pixels = orl(image_size=None).images[0, 0].numpy()
    Image.fromarray(pixels).save(tmp_path / "small.png")
    Image.fromarray(np.kron(pixels, np.ones((4, 4), np.uint8))).save(tmp_path / "large.png")
    model, made = Recogniser.load(run), Gallery.load(gallery)
    small = name_faces(model, made, model.read(tmp_path / "small.png", 112))
    large = name_faces(model, made, model.read(tmp_path / "large.png", 112))
    assert small
    for one, other in zip(small, large, strict=True):
        assert [4 * side for side in one.box] == pytest.approx(list(other.box), abs=1e-2)
        assert one.cosine == pytest.approx(other.cosine, abs=1e-4)
