"""`mtl verify` on a run and on pictures laid out as LFW's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import roc_auc_score

from mtl.cli.main import main
from mtl.run.build import read_config
from mtl.run.load import load_run
from mtl.run.train import train
from tests.data.test_pairs import LINES, PICTURES
from tests.run.test_train import small


@pytest.fixture
def run_dir(class_folders: Path, tmp_path: Path) -> Path:
    train(small(class_folders), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two folds, each picture noise of its own about the face of its person."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "faces" / "lfw"
    for person, count in PICTURES.items():
        (folder / person).mkdir(parents=True)
        face = rng.integers(0, 200, (16, 16))
        for number in range(1, count + 1):
            picture = (face + rng.integers(0, 20, (16, 16))).astype(np.uint8)
            Image.fromarray(picture).save(folder / person / f"{person}_{number:04d}.jpg")
    (folder / "pairs.txt").write_text("\n".join(LINES))
    return tmp_path / "faces"


def test_the_files_hold_what_is_printed(run_dir: Path, people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run_dir), "--root", str(people)]) == 0
    printed = capsys.readouterr().out
    told = json.loads((run_dir / "verification-lfw.json").read_text())
    assert (told["num_pairs"], told["num_folds"], told["flip"], told["checkpoint"]) == (8, 2, True, "best.ckpt")
    assert (run_dir / "figures" / "verification-lfw.png").stat().st_size > 10_000
    with np.load(run_dir / "verification-lfw.npz") as arrays:
        for name in ("trained", "untrained", "pixels"):
            result = told["results"][name]
            assert result["auc"] == pytest.approx(roc_auc_score(arrays["same"], arrays[f"{name}_scores"]))
            assert 0 <= result["eer"] <= 1
            assert len(result["folds"]) == 2
            assert f"{100 * result['accuracy']:.2f} ± {100 * result['accuracy_standard_error']:.2f}" in printed
        # Pixels of one person differ by noise alone, those of two are strangers.
        assert told["results"]["pixels"]["auc"] == 1
        assert not np.allclose(arrays["trained_scores"], arrays["untrained_scores"])
        assert arrays["pixels_far"][0] == 0
        assert arrays["pixels_far"][-1] == 1


def test_scores_are_cosines_of_the_trunk_on_prepared_pictures(run_dir: Path, people: Path) -> None:
    assert main(["verify", str(run_dir), "--root", str(people), "--no-flip", "--crop", "2", "0", "12", "16"]) == 0
    model = load_run(run_dir).model

    def features(name: str) -> torch.Tensor:
        with Image.open(people / "lfw" / name.split("_")[0] / f"{name}.jpg") as picture:
            cut = picture.crop((0, 2, 16, 14)).resize((16, 16), Image.Resampling.BOX)
        pixels = torch.from_numpy(np.array(cut)).float() / 255
        with torch.no_grad():
            return model.trunk((pixels[None, None] - 0.5) / 0.25)[0]

    expected = torch.nn.functional.cosine_similarity(features("Bo_0001"), features("Bo_0003"), dim=0)
    with np.load(run_dir / "verification-lfw.npz") as arrays:
        assert arrays["trained_scores"][1] == pytest.approx(float(expected), abs=1e-5)


def test_mirrored_pictures_embed_alike_with_flip(run_dir: Path, people: Path) -> None:
    assert main(["verify", str(run_dir), "--root", str(people)]) == 0
    with np.load(run_dir / "verification-lfw.npz") as arrays:
        before = arrays["trained_scores"]
    for path in (people / "lfw" / "Al").glob("*.jpg"):
        with Image.open(path) as picture:
            mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.save(path, quality=100)
    assert main(["verify", str(run_dir), "--root", str(people)]) == 0
    with np.load(run_dir / "verification-lfw.npz") as arrays:
        assert arrays["trained_scores"] == pytest.approx(before, abs=0.02)  # but for the rounding of the file format


def test_joined_runs_score_as_their_unit_embeddings_side_by_side(
    run_dir: Path, class_folders: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(class_folders, "seed=1", "data.image_size=[12,12]"), tmp_path / "other")
    scores = []
    for run in (tmp_path / "other", run_dir):
        assert main(["verify", str(run), "--root", str(people)]) == 0
        with np.load(run / "verification-lfw.npz") as arrays:
            assert "joined_scores" not in arrays
            scores.append(arrays["trained_scores"])
    assert main(["verify", str(run_dir), "--root", str(people), "--beside", str(tmp_path / "other")]) == 0
    assert "joined" in capsys.readouterr().out
    with np.load(run_dir / "verification-lfw.npz") as arrays:
        assert arrays["joined_scores"] == pytest.approx((scores[0] + scores[1]) / 2, abs=1e-6)
        assert np.array_equal(arrays["trained_scores"], scores[1])


def test_what_cannot_be_verified_is_refused(
    run_dir: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (people / "lfw" / "Bo" / "Bo_0003.jpg").unlink()
    cases = {
        (str(tmp_path / "none"), "lfw", str(people)): "must hold config.yaml",
        (str(run_dir), "faces", str(people)): "--pairs must be one of lfw, celeba, got faces",
        (str(run_dir), "lfw", str(tmp_path)): "must hold LFW's pairs.txt",
        (str(run_dir), "lfw", str(people)): "1 of them are missing",
        (str(run_dir), "celeba", str(people)): "data.root must hold CelebA",
    }
    for (run, pairs, root), message in cases.items():
        assert main(["verify", run, "--pairs", pairs, "--root", root]) == 2
        assert message in capsys.readouterr().err
    for name in ("Bo_0001", "Bo_0003"):
        (people / "lfw" / "Bo" / f"{name}.jpg").write_bytes((people / "lfw" / "Bo" / "Bo_0002.jpg").read_bytes())
    assert main(["verify", str(run_dir), "--root", str(people), "--beside", str(tmp_path / "none")]) == 2
    assert "must hold config.yaml" in capsys.readouterr().err
    assert not list(run_dir.glob("verification*"))


def test_people_that_were_trained_on_are_refused(
    run_dir: Path, people: Path, celeba: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = read_config(run_dir)
    for loader, root, message in (
        ("lfw", people, "this run was trained on data=lfw"),
        ("celeba", celeba, "this run was trained on data.part=None; use data.part=train"),
    ):
        config = text.copy()
        config.data._target_ = f"mtl.data.faces.{loader}"
        OmegaConf.save(config, run_dir / "config.yaml")
        assert main(["verify", str(run_dir), "--pairs", loader, "--root", str(root)]) == 2
        assert message in capsys.readouterr().err
    assert not list(run_dir.glob("verification*"))


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Twenty people of two pictures each in the test part, each a bright square in the corner that a crop of [8, 8, 8, 8] shows."""
    base = tmp_path / "sets" / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(40):
        picture = rng.integers(0, 100, (16, 16)).astype(np.uint8)
        picture[8:, 8:] = np.random.default_rng(number // 2).integers(0, 255, (8, 8))
        Image.fromarray(picture).save(base / "img_align_celeba" / f"{number:06}.jpg", quality=100)
    names = [f"{number:06}.jpg" for number in range(40)]
    (base / "identity_CelebA.txt").write_text("".join(f"{name} {place // 2}\n" for place, name in enumerate(names)))
    (base / "list_eval_partition.txt").write_text("".join(f"{name} 2\n" for name in names))
    return tmp_path / "sets"


def test_the_runs_own_crop_is_that_of_pairs_of_the_same_set(
    run_dir: Path, celeba: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(run_dir)
    config.data = {"_target_": "mtl.data.faces.celeba", "root": str(celeba), "part": "train", "crop": [8, 8, 8, 8]}
    OmegaConf.save(config, run_dir / "config.yaml")
    words = ["verify", str(run_dir), "--pairs", "celeba", "--root", str(celeba)]
    told, scores = [], []
    for crop in ((), ("--crop", "8", "8", "8", "8"), ("--crop", "0", "0", "16", "16")):
        assert main([*words, *crop]) == 0
        told.append(json.loads((run_dir / "verification-celeba.json").read_text()))
        with np.load(run_dir / "verification-celeba.npz") as arrays:
            scores.append(arrays["pixels_scores"])
        assert ("shows it others" in capsys.readouterr().err) == ("16" in crop)
    assert [one["crop"] for one in told] == [[8, 8, 8, 8], [8, 8, 8, 8], [0, 0, 16, 16]]
    assert np.array_equal(scores[0], scores[1])
    # What is the same in a person's pictures is in the crop alone.
    assert told[0]["results"]["pixels"]["auc"] == pytest.approx(1)
    with np.load(run_dir / "verification-celeba.npz") as arrays:
        assert scores[0][arrays["same"]].min() > 0.99 > scores[2][arrays["same"]].max()
    assert len(told[2]["warnings"]) == 1
    # Of other pictures the crop is another, and the run says so.
    assert main(["verify", str(run_dir), "--pairs", "lfw", "--root", str(people)]) == 0
    assert "trained with data.crop=[8, 8, 8, 8] of celeba, and the pictures of lfw are taken whole" in capsys.readouterr().err
    assert json.loads((run_dir / "verification-lfw.json").read_text())["crop"] is None
    assert main(["verify", str(run_dir), "--pairs", "lfw", "--root", str(people), "--crop", "2", "2", "8", "8"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_every_number_says_of_how_many_pairs_it_is(
    run_dir: Path, people: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr("mtl.trained.verify.save_figure", lambda figure, path: drawn.append(figure))
    assert main(["verify", str(run_dir), "--root", str(people)]) == 0
    counted = "n = 4 pairs of one person and 4 of two, in 2 folds"
    assert counted in " ".join(capsys.readouterr().out.split())
    assert drawn[0].get_supxlabel() == counted
    told = json.loads((run_dir / "verification-lfw.json").read_text())
    assert (told["num_pairs"], told["num_same"], told["num_different"]) == (8, 4, 4)
    for result in told["results"].values():
        for fold in result["folds"]:
            assert (fold["num_same"], fold["num_different"], fold["num_threshold_pairs"]) == (2, 2, 4)


def test_a_run_that_is_gone_stops_the_verification_or_marks_it(
    run_dir: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(run_dir)
    config.weights = str(tmp_path / "gone")
    OmegaConf.save(config, run_dir / "config.yaml")
    words = ["verify", str(run_dir), "--root", str(people)]
    assert main(words) == 2
    assert f"weights={tmp_path / 'gone'} cannot be followed" in capsys.readouterr().err
    assert main([*words, "--allow-unknown"]) == 0
    assert "cannot be followed" in capsys.readouterr().err
    (warning,) = json.loads((run_dir / "verification-lfw.json").read_text())["warnings"]
    assert "cannot be followed" in warning


def test_a_run_in_which_each_client_keeps_its_trunk_is_refused(
    class_folders: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(class_folders, "mode=local"), tmp_path / "run")
    assert main(["verify", str(tmp_path / "run"), "--root", str(people)]) == 2
    assert "has one trunk for each client" in capsys.readouterr().err


def test_the_loaded_model_scores_as_the_run_did(class_folders: Path, tmp_path: Path) -> None:
    from mtl.run.build import build_data, build_objective

    config = small(class_folders, "split.val=0")
    train(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    data = build_data(config)
    scores = build_objective(config).scores(run.model, data.images[data.split.test])
    with np.load(tmp_path / "run" / "predictions.npz") as arrays:
        assert scores.numpy() == pytest.approx(arrays["scores"], abs=1e-6)
    assert (run.tasks, run.image_shape, run.round) == (data.tasks, (1, 16, 16), 4)
