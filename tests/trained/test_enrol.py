"""Galleries made, grown and shrunk through the command line, with a model that has hardly been trained."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from mtl.cli.main import main
from mtl.data.faces import orl
from mtl.faces.gallery import Gallery
from mtl.run.build import read_config
from tests.trained.test_recognise import gallery, photos, run  # noqa: F401


def person(folder: Path, number: int, *, count: int = 2) -> Path:
    """Photos of one of the forty as those of a user."""
    folder.mkdir(parents=True)
    images = orl(image_size=None).images
    for place in range(count):
        Image.fromarray(images[10 * number + place, 0].numpy()).save(folder / f"{place}.png")
    return folder.parent


@pytest.fixture
def file(gallery: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copy(gallery, tmp_path / "g.npz"))


def test_strangers_are_the_people_that_the_run_was_trained_on_and_are_counted(file: Path, gallery: Path) -> None:  # noqa: F811
    made = Gallery.load(file)
    assert made.strangers is not None
    assert set(made.strangers.names) <= {"s1", "s2", "s3", "s4"}
    told = json.loads(gallery.with_suffix(".json").read_text())
    refused = told["calibration"]["refused"]
    assert refused["num_people"] == len(made.strangers.names)
    assert refused["num_faces"] == len(made.strangers.person)
    assert refused["num"] == 2  # people enrolled
    assert refused["interval"][0] <= refused["share"] <= refused["interval"][1]
    assert told["calibration"]["kept"]["num"] == 6
    assert told["people"] == {name: [f for f in made.files if f.startswith(name)] for name in ("p0", "p1")}


def test_who_is_enrolled_is_no_stranger(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    person(tmp_path / "in" / "s1", 0)
    person(tmp_path / "in" / "bo", 1)
    words = ["enrol", "--gallery", str(tmp_path / "in"), "--model", str(run), "--output", str(tmp_path / "g.npz")]
    assert main([*words, "--not-strangers", "s2"]) == 0
    made = Gallery.load(tmp_path / "g.npz")
    assert made.strangers is not None
    assert made.calibration.refused is not None
    assert "s2" not in made.strangers.names
    assert made.calibration.refused.people == len(set(made.strangers.names) - {"s1"})
    assert main([*words, "--force", "--not-strangers", "bo"]) == 2
    assert "--not-strangers must name people of the run's data, got bo" in capsys.readouterr().err


def test_strangers_of_the_users_own_are_counted_alone(run: Path, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    for number in (7, 8, 9):
        person(tmp_path / "others" / f"x{number}", number)
    words = ["enrol", "--gallery", str(photos), "--model", str(run), "--output", str(tmp_path / "g.npz")]
    assert main([*words, "--strangers", str(tmp_path / "others")]) == 0
    refused = Gallery.load(tmp_path / "g.npz").calibration.refused
    assert refused is not None
    assert (refused.faces, refused.people, refused.num) == (6, 3, 3)


def test_data_that_are_gone_are_said_and_the_gallery_stands_for_strangers(
    run: Path,  # noqa: F811
    photos: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = read_config(tmp_path / "run")
    config.data = {"_target_": "mtl.data.faces.celeba", "root": str(tmp_path / "none")}
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    words = ["enrol", "--gallery", str(photos), "--model", str(tmp_path / "run"), "--output", str(tmp_path / "g.npz")]
    assert main(words) == 0
    assert "the people that the run was trained on are not at hand" in capsys.readouterr().err
    made = Gallery.load(tmp_path / "g.npz")
    assert made.strangers is None
    assert made.calibration.source == "each person of the gallery left out in turn"


def test_a_gallery_is_not_written_over_unless_forced(
    run: Path,  # noqa: F811
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["enrol", "--gallery", str(person(tmp_path / "in" / "cyd", 2)), "--model", str(run), "--output", str(file)]
    before = file.read_bytes()
    assert main(words) == 2
    assert f"--output must not exist, got {file}; --add adds people to it" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main([*words, "--force"]) == 0
    assert Gallery.load(file).names == ("cyd",)


def test_people_are_added_listed_and_removed(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Gallery.load(file)
    folder = str(person(tmp_path / "in" / "cyd", 2))
    assert main(["enrol", "--add", "--gallery", folder, "--output", str(file)]) == 0
    assert Gallery.load(file).names == ("p0", "p1", "cyd")
    assert main(["enrol", "--add", "--gallery", folder, "--output", str(file)]) == 2
    assert "not enrolled yet, got cyd" in capsys.readouterr().err
    assert main(["enrol", "--list", "--output", str(file)]) == 0
    out = capsys.readouterr().out
    assert "cyd/0.png, cyd/1.png" in out
    assert "Wilson 95 %, n = " in out
    assert main(["enrol", "--remove", "cyd", "--output", str(file)]) == 0
    after = Gallery.load(file)
    assert (after.names, after.calibration) == (before.names, before.calibration)
    assert main(["enrol", "--remove", "cyd", "--output", str(file)]) == 2
    assert "people of the gallery, p0, p1; got cyd" in capsys.readouterr().err


def test_a_picture_under_two_names_is_refused_whatever_its_kind_of_file(
    run: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    person(tmp_path / "in" / "ada", 0)
    person(tmp_path / "in" / "bob", 1)
    with Image.open(tmp_path / "in" / "ada" / "1.png") as picture:
        picture.save(tmp_path / "in" / "bob" / "7.pgm")
    words = ["enrol", "--gallery", str(tmp_path / "in"), "--model", str(run), "--output", str(tmp_path / "g.npz")]
    assert main(words) == 2
    assert "got ada/1.png of ada and bob/7.pgm of bob" in capsys.readouterr().err
    assert not (tmp_path / "g.npz").exists()


def test_one_person_under_two_names_and_a_picture_twice_are_said(
    run: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    person(tmp_path / "in" / "ada", 0)
    shutil.copy(tmp_path / "in" / "ada" / "1.png", tmp_path / "in" / "ada" / "copy.png")
    (tmp_path / "in" / "bob").mkdir()
    # The same photos, stored with loss.
    for name in ("0", "1"):
        with Image.open(tmp_path / "in" / "ada" / f"{name}.png") as picture:
            picture.save(tmp_path / "in" / "bob" / f"{name}.jpg", quality=95)
    words = ["enrol", "--gallery", str(tmp_path / "in"), "--model", str(run), "--output", str(tmp_path / "g.npz")]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "copy.png is the same picture as ada/1.png; it is left out" in err
    assert "ada and bob may be one person under two names: 4 of their 4 photos" in err
    assert Gallery.load(tmp_path / "g.npz").files == ("ada/0.png", "ada/1.png", "bob/0.jpg", "bob/1.jpg")


@pytest.mark.parametrize("words", [[], ["--add"], ["--remove", "p0"]])
@pytest.mark.parametrize("threshold", ["nan", "1", "-1.5"])
def test_a_threshold_that_is_no_cosine_is_refused(
    words: list[str],
    threshold: str,
    run: Path,  # noqa: F811
    photos: Path,  # noqa: F811
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = file.read_bytes()
    made = ["--gallery", str(photos), "--model", str(run), "--force"] if not words else ["--gallery", str(photos), *words]
    assert main(["enrol", *made, "--output", str(file), f"--threshold={threshold}"]) == 2
    assert "--threshold must be in (-1, 1), a cosine, got" in capsys.readouterr().err
    assert file.read_bytes() == before
