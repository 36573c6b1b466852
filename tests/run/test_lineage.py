"""What a run was trained on, followed through the runs that it learned from."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mtl.run.lineage import check_unseen, trace
from tests.data.test_pairs import lay_out

FOLDER = {"_target_": "mtl.data.folders.folder"}
LFW = {"_target_": "mtl.data.faces.lfw", "root": "data"}


@pytest.fixture
def other(tmp_path: Path) -> dict[str, Any]:
    """Data that show nobody of the pairs."""
    (tmp_path / "other" / "cats").mkdir(parents=True)
    (tmp_path / "other" / "cats" / "1.jpg").touch()
    return FOLDER | {"root": str(tmp_path / "other")}


@pytest.fixture
def pairs_file(tmp_path: Path) -> str:
    lay_out(tmp_path / "lfw")
    return str(tmp_path / "lfw" / "pairs.txt")


def write(run: Path, data: dict[str, Any], **options: Any) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    content = OmegaConf.create({"trunk": {}, "data": data})
    for option, value in options.items():
        OmegaConf.update(content, option.replace("__", "."), str(value) if isinstance(value, Path) else value)
    OmegaConf.save(content, run / "config.yaml")
    return run


@pytest.mark.parametrize("option", ["weights", "start", "distil__teacher", "transfer__source"])
def test_people_of_the_pairs_are_found_two_runs_away(option: str, tmp_path: Path, other: dict[str, Any], pairs_file: str) -> None:
    first = write(tmp_path / "a", LFW)
    second = write(tmp_path / "b", other, **{option: first})
    third = write(tmp_path / "c", other, start=second)
    words = rf"trained on data=lfw; train on other data \(by .*c > start=.*b > {option.replace('__', '.')}=.*a\)"
    with pytest.raises(ValueError, match=words):
        check_unseen(third, "lfw", pairs_file)
    write(first, other)
    assert check_unseen(third, "lfw", pairs_file).unknown == ()


def test_a_checkpoint_file_is_followed_to_its_run(tmp_path: Path, other: dict[str, Any], pairs_file: str) -> None:
    first = write(tmp_path / "a", LFW)
    (first / "checkpoints").mkdir()
    (first / "checkpoints" / "best.ckpt").touch()
    run = write(tmp_path / "b", other, weights=first / "checkpoints" / "best.ckpt")
    with pytest.raises(ValueError, match="data=lfw"):
        check_unseen(run, "lfw", pairs_file)
    (tmp_path / "w.pth").touch()
    with pytest.raises(ValueError, match=r"w\.pth is a file, which does not say what it was trained on"):
        check_unseen(write(run, other, weights=tmp_path / "w.pth"), "lfw", pairs_file)


def test_of_a_source_the_pictures_count_and_not_where_its_model_began(
    tmp_path: Path, other: dict[str, Any], pairs_file: str
) -> None:
    begun = write(tmp_path / "b", other, start=write(tmp_path / "a", LFW))
    run = write(tmp_path / "c", other, transfer__source=begun)
    assert [data.path for data in check_unseen(run, "lfw", pairs_file).data] == [str(run), f"{run} > transfer.source={begun}"]


def test_unlabelled_images_of_the_server_count(tmp_path: Path, other: dict[str, Any], pairs_file: str) -> None:
    run = write(tmp_path / "a", other, server__images=LFW)
    with pytest.raises(ValueError, match="data=lfw"):
        check_unseen(run, "lfw", pairs_file)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.DEFAULT"])
def test_published_weights_are_no_runs(weights: str, tmp_path: Path, other: dict[str, Any], pairs_file: str) -> None:
    assert check_unseen(write(tmp_path / "a", other, weights=weights), "lfw", pairs_file).unknown == ()


def test_what_is_missing_is_named_and_refused_unless_allowed(tmp_path: Path, other: dict[str, Any], pairs_file: str) -> None:
    gone = tmp_path / "gone"
    run = write(tmp_path / "b", other, distil__teacher=write(tmp_path / "a", other, weights=gone))
    with pytest.raises(ValueError, match=r"is not known: .*b > distil\.teacher=.*a > weights=.*gone cannot be followed.*--allow"):
        check_unseen(run, "lfw", pairs_file)
    (text,) = check_unseen(run, "lfw", pairs_file, allow_unknown=True).unknown
    assert "gone" in text
    write(run, LFW, weights=gone)
    with pytest.raises(ValueError, match="data=lfw"):
        check_unseen(run, "lfw", pairs_file, allow_unknown=True)


def test_a_circle_ends_and_is_named(tmp_path: Path, other: dict[str, Any]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, other, start=b)
    write(b, other, weights=a)
    lineage = trace(a)
    assert len(lineage.data) == 2
    assert lineage.unknown == (
        f"{a} > start={b} > weights={a} is a circle: one of its runs was overwritten, and the earlier one is not known",
    )


def test_class_folders_of_the_people_of_the_pairs_are_refused_wherever_they_lie(tmp_path: Path, pairs_file: str) -> None:
    folder = tmp_path / "mine" / "train" / "Bo"
    folder.mkdir(parents=True)
    (folder / "x.jpg").touch()
    run = write(tmp_path / "a", FOLDER | {"root": str(tmp_path / "mine")})
    with pytest.raises(ValueError, match="which shows Bo"):
        check_unseen(run, "lfw", pairs_file)
    run = write(tmp_path / "a", FOLDER | {"root": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="nowhere is not there, and whom it showed is not known"):
        check_unseen(run, "lfw", pairs_file)


def test_links_to_celebas_test_part_are_refused_and_others_not(tmp_path: Path) -> None:
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    (base / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 2\n")
    (tmp_path / "mine" / "ada").mkdir(parents=True)
    for number in (1, 2):
        picture = base / "img_align_celeba" / f"00000{number}.jpg"
        picture.touch()
        (tmp_path / "mine" / "ada" / f"{number}.jpg").symlink_to(picture)
    run = write(tmp_path / "a", FOLDER | {"root": str(tmp_path / "mine")})
    with pytest.raises(ValueError, match=r"which shows 000002\.jpg"):
        check_unseen(run, "celeba", str(base))
    (tmp_path / "mine" / "ada" / "2.jpg").unlink()
    assert check_unseen(run, "celeba", str(base)).unknown == ()
    celeba = {"_target_": "mtl.data.faces.celeba", "root": str(tmp_path)}
    with pytest.raises(ValueError, match=r"data\.part=all; use data\.part=train"):
        check_unseen(write(run, celeba | {"part": "all"}), "celeba", str(base))
    assert check_unseen(write(run, celeba | {"part": "val"}), "celeba", str(base)).unknown == ()
