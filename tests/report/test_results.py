"""What detection and `mtl verify` leave in a run directory stands on its page, and what is doubtful about runs is said there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mtl.base.files import write_arrays, write_json
from mtl.report import html
from mtl.report.groups import group_runs, mixed_code
from mtl.report.measures import precision_recall
from mtl.report.page import write_report
from mtl.report.runs import find_runs, read_run
from mtl.report.tables import comparison_table, markdown_table
from tests.report.test_page import Page

SMALL = {"num_tasks": 2, "num_clients": 2, "num_rounds": 5}


def write_detections(run: Path) -> None:
    """Two scenes: in the first a face named, in the second one missed and a box without a face."""
    write_arrays(
        run / "detection.npz",
        confidence=np.array(0.5),
        num_faces=np.array(2),
        scores=np.array([0.9, 0.6, 0.1]),
        hits=np.array([True, False, False]),
        images=np.full((2, 1, 40, 60), 128, dtype=np.uint8),
        found_scene=np.array([0, 1]),
        found_boxes=np.array([[5.0, 5, 25, 30], [40, 0, 58, 20]]),
        found_names=np.array(["s1", ""]),
        found_place=np.array([0, -1]),
        true_scene=np.array([0, 1]),
        true_boxes=np.array([[6.0, 6, 25, 30], [2, 20, 20, 39]]),
        true_names=np.array(["s1", "s2"]),
    )


def write_verification(run: Path) -> None:
    result = {
        "accuracy": 0.6035,
        "accuracy_standard_error": 0.0075,
        "eer": 0.3953,
        "auc": 0.64894,
        "tar@far=0.01": 0.0463,
        "folds": [],
    }
    about = {"pairs": "lfw", "num_pairs": 6000, "num_folds": 10, "round": 6}
    write_json(run / "verification-lfw.json", about | {"results": {"trained": result, "pixels": result | {"auc": None}}})
    far = np.linspace(0, 1, 20)
    curves = {
        f"{name}_{rate}": values for name in ("trained", "pixels") for rate, values in (("far", far), ("frr", (1 - far) ** 3))
    }
    write_arrays(run / "verification-lfw.npz", **curves)


def bare_run(path: Path, *, mode: str = "federated", seed: int = 0) -> Path:
    """A run that was killed before its first round: nothing to draw."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"mode: {mode}\nseed: {seed}\n")
    environment = {"commit": "3f2c1ab09d", "python": "3.12.3", "versions": {"torch": "2.11.0", "numpy": "2.4.6"}}
    (path / "environment.json").write_text(json.dumps(environment))
    return path


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_precision_and_recall_by_hand() -> None:
    """By falling score: right, wrong, and of two equally sure one right; three true faces."""
    precision, recall, scores = precision_recall(np.array([0.5, 0.9, 0.5, 0.7]), np.array([True, True, False, False]), 3)
    assert precision.tolist() == [1.0, 0.5, 0.5]
    assert recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert scores.tolist() == [0.9, 0.7, 0.5]


def test_the_page_of_a_detection_run_shows_what_was_found(tmp_path: Path, fabricate) -> None:
    run = fabricate(tmp_path / "run", **SMALL)
    plain = Page(write_report([run])).text
    assert not any(words in plain for words in ("Faces found", "Test scenes", "The same person"))
    write_detections(run)
    rates = {"test/ap50": 0.7426, "test/found": 0.5, "test/precision": 0.25, "test/named": 0.125}
    change_json(run / "summary.json", **rates)
    page = Page(write_report([run]))
    shown = ("AP at overlap 0.5 %74.3", "Faces found %50.0", "Precision %25.0", "Faces named %12.5", "Faces found", "Test scenes")
    assert [words for words in shown if words not in page.text] == []
    assert {"detection.png", "scenes.png"} <= {file.name for file in (run / "figures").iterdir()}
    # In a table of several, of the groups that have them.
    assert "AP at overlap 0.5 %" in markdown_table([run])


def test_a_detection_run_without_its_scenes_says_so(tmp_path: Path, fabricate) -> None:
    run = fabricate(tmp_path / "run", **SMALL)
    (run / "config.yaml").write_text("mode: detection\nseed: 0\n")
    (run / "detection.npz").write_bytes(b"PK torn")
    page = Page(write_report([run]))
    assert "detection.npz could not be read" in page.text
    assert page.text.count("Not shown: the run directories hold no data for this figure.") >= 2


def test_the_page_of_a_verified_run_shows_its_rates_and_curves(tmp_path: Path, fabricate) -> None:
    run = fabricate(tmp_path / "run", **SMALL)
    write_verification(run)
    page = Page(write_report([run]))
    shown = (
        "The same person or not: lfw",
        "6,000 pairs in 10 folds",
        "60.35 ± 0.75",
        "39.53",
        "0.6489",
        "TAR % at FAR 0.01",
        "4.6",
        "–",
    )
    assert [words for words in shown if words not in page.text] == []
    assert (run / "figures" / "verification-lfw.png").exists()
    (run / "verification-lfw.npz").unlink()
    page = Page(write_report([run]))
    assert "verification-lfw.npz is missing" in page.text
    assert "60.35 ± 0.75" in page.text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "federated", "architecture": "hard_sharing"}, "One shared trunk with one head per subtask was trained"),
        (
            {"mode": "detection", "architecture": "hard_sharing"},
            "One shared trunk with one head per subtask and one that finds faces was",
        ),
        ({"mode": "federated", "architecture": "mmoe"}, "A model of the architecture mmoe was trained"),
        ({"mode": "local", "architecture": "hard_sharing"}, "A model on each client alone was trained"),
        ({"mode": "single_task", "architecture": "hard_sharing"}, "A model for each subtask alone was trained"),
        ({"mode": "federated"}, "A model was trained"),
    ],
)
def test_a_shared_trunk_is_spoken_of_where_there_is_one(settings: dict[str, str], sentence: str, tmp_path: Path) -> None:
    lines = [f"mode: {settings['mode']}"]
    if "architecture" in settings:
        lines.append(f"architecture: {{_target_: mtl.models.x.{settings['architecture']}}}")
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    text = Page(write_report([tmp_path])).text
    assert sentence in text
    assert ("shared trunk" in text) == ("shared trunk" in sentence)


def test_a_page_says_which_code_its_runs_do_not_share(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert "different" not in Page(write_report(runs)).text
    change_json(runs[1] / "environment.json", commit="77aa00bb11cc", versions={"torch": "2.12.0", "numpy": "2.4.6"})
    text = Page(write_report(runs)).text
    assert "of different commits (3f2c1ab09d, 77aa00bb11)" in text
    assert "of different versions of torch (2.11.0, 2.12.0)" in text
    assert "versions of numpy" not in text
    # Between groups that are each of one commit.
    other = bare_run(tmp_path / "other", mode="local")
    change_json(other / "environment.json", commit="77aa00bb11cc")
    assert "The groups: the runs are of different commits" in Page(write_report([runs[0], other])).text
    # What a killed run does not say differs from nothing.
    (other / "environment.json").unlink()
    assert mixed_code("both", [read_run(runs[0]), read_run(other)]) == []


def test_links_to_one_run_are_one_run_on_the_page_and_in_the_table(tmp_path: Path) -> None:
    real = bare_run(tmp_path / "elsewhere" / "run")
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "first").symlink_to(real)
    (folder / "second").symlink_to(real)
    (folder / "above").symlink_to(folder)  # a walk that followed it would not end
    assert find_runs([folder]) == [folder / "first"]
    runs = [folder / "first", folder / "second", real]
    assert [list(column.cells) for column in comparison_table(runs).columns][1] == ["1"]
    assert write_report(runs[:2]) == folder / "first" / "report.html"
    other = bare_run(tmp_path / "sweep" / "other", mode="local")
    assert write_report([folder / "first", other]) == folder / "report.html"


def test_a_report_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bare_run(tmp_path / "run")
    page = write_report([run])
    before = page.read_text()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        html.write_page(page, "another", "body")
    assert page.read_text() == before
    assert [file.name for file in run.iterdir() if "partial" in file.name] == []


def test_of_several_runs_one_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.yaml").write_text("mode: [federated")
    page = Page(write_report([*runs, tmp_path / "torn"]))
    assert "2 runs in 1 group" in page.text
    assert f"left out: {tmp_path / 'torn' / 'config.yaml'} must be a YAML mapping" in page.text
    assert "left out" in str(comparison_table([*runs, tmp_path / "torn"]).caption)
    with pytest.raises(ValueError, match="must be a YAML mapping"):
        markdown_table([*runs, tmp_path / "torn"])


@pytest.mark.parametrize("name", ["predictions.npz", "federation.npz", "summary.json", "environment.json", "metrics.csv"])
def test_a_damaged_file_is_said_to_be_damaged(name: str, tmp_path: Path, fabricate) -> None:
    run = fabricate(tmp_path / "run", **SMALL)
    whole = (run / name).read_bytes()
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    middle = len(whole) // 2
    for damage in (
        b"",
        b"\x00" * 40,
        whole[:middle],
        whole[:middle] + b"\xff\xfe" + whole[middle + 2 :],
        array.read_bytes(),
        b"[1]",
    ):
        (run / name).write_bytes(damage)
        found = read_run(run)
        assert group_runs([found])
        assert isinstance(found.notes, tuple)
    assert name in Page(write_report([run])).text


def test_odd_values_in_a_configuration_are_shown_as_they_are(tmp_path: Path, fabricate) -> None:
    odd = {"data": None, "seed": [1, 2], "trunk": "cnn", "architecture": {"_target_": 3}, "balance": None, "best_by": 7}
    run = fabricate(tmp_path / "run", config=odd, **SMALL)
    assert "[1, 2]" in Page(write_report([run, bare_run(tmp_path / "other")])).text


def test_architectures_of_clients_are_no_tasks(tmp_path: Path, fabricate) -> None:
    run = fabricate(tmp_path / "run", config={"trunk": {"trunks": {"small": {}}}}, **SMALL)
    change_json(run / "summary.json", **{"test/trunk_small/auroc": 0.1})
    assert list(read_run(run).task_metric("auroc")) == ["s1", "s2"]


def test_what_holds_for_the_code_of_every_group_is_said_once(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path / f"{mode}{seed}", mode=mode, seed=seed) for mode in ("federated", "local") for seed in (0, 1)]
    for run in runs:
        change_json(run / "environment.json", dirty=True)
    text = Page(write_report(runs)).text
    assert text.count("of files that were not committed") == 1
    assert "The groups: the runs are of files that were not committed, 4 of 4 of them" in text
    # Of one group it is said of that group.
    for run in runs[:2]:
        change_json(run / "environment.json", dirty=False)
    assert "local: the runs are of files that were not committed, 2 of 2 of them" in Page(write_report(runs)).text


def test_the_details_name_the_processor_and_the_gpus(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    change_json(run / "environment.json", cpu="AMD EPYC 9654", gpus=["NVIDIA H100", "NVIDIA H100"])
    text = Page(write_report([run])).text
    assert "AMD EPYC 9654" in text
    assert "NVIDIA H100, NVIDIA H100" in text


def test_scores_of_a_verification_come_in_the_order_of_their_interest(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    rate = {"accuracy": 0.5, "eer": 0.5, "auc": 0.5}
    results = dict.fromkeys(("pixels", "trained", "untrained", "another"), rate)
    (run / "verification-lfw.json").write_text(json.dumps({"results": results}, sort_keys=True))
    assert list(read_run(run).verified["lfw"].rates) == ["trained", "untrained", "pixels", "another"]


def test_a_folder_whose_name_is_not_utf8_is_shown_by_its_numbers(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "b\udce9")
    assert "b\\udce9" in Page(write_report([run])).text
