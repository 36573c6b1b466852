"""A run directory is read for what it holds, and says what it lacks."""

import json
from pathlib import Path

import numpy as np
import pytest

from mtl.report.runs import failed_runs, find_runs, read_run


def write_metrics(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "metrics.csv").write_text(text)
    return folder


def test_a_folder_without_config_names_the_path_and_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"must hold config.yaml, got {tmp_path}"):
        read_run(tmp_path)


def test_a_folder_of_runs_is_searched_but_not_the_runs_themselves(tmp_path: Path) -> None:
    for name in ("sweep/b", "sweep/a", "sweep/a/files", "sweep/.hydra", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    a, b, other = tmp_path / "sweep/a", tmp_path / "sweep/b", tmp_path / "other"
    assert find_runs([other, tmp_path / "sweep", a]) == [other, a, b]
    with pytest.raises(ValueError, match=f"got {tmp_path / 'none'}"):
        find_runs([tmp_path / "none"])


def test_failed_runs_are_named_with_the_first_line_of_their_error(tmp_path: Path) -> None:
    for name in ("fine", "broken"):
        write_metrics(tmp_path / name, "round,metric,value\n")
    (tmp_path / "broken" / "error.txt").write_text("ValueError: no images\n\nTraceback\n")
    assert failed_runs([tmp_path]) == {tmp_path / "broken": "ValueError: no images"}
    assert "the run failed: ValueError: no images" in read_run(tmp_path / "broken").notes
    assert not any("failed" in note for note in read_run(tmp_path / "fine").notes)


def test_a_config_that_is_no_mapping_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match=r"config\.yaml must be a YAML mapping"):
        read_run(tmp_path)


def test_missing_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    names = ("metrics.csv", "environment.json", "summary.json", "predictions.npz", "federation.npz")
    assert set(read_run(tmp_path).notes) == {f"{name} is missing" for name in names}


def test_a_whole_run_has_no_notes(tmp_path: Path, fabricate) -> None:
    assert read_run(fabricate(tmp_path, num_tasks=3, num_clients=2, num_rounds=5)).notes == ()


def test_a_torn_last_line_is_left_out_and_said_even_where_it_parses(tmp_path: Path) -> None:
    run = read_run(write_metrics(tmp_path, "round,metric,value\n1,train/loss,0.5\n2,train/loss,0.4"))
    assert run.curves == {"train/loss": {1: 0.5}}
    assert "metrics.csv: 1 torn or unreadable line left out" in run.notes


def test_a_line_torn_by_a_kill_and_written_on_by_a_resume_is_left_out(tmp_path: Path) -> None:
    text = "round,metric,value\n1,train/loss,0.5\n2,train/lo2,train/loss,0.4\n3,train/loss,0.3\n"
    assert read_run(write_metrics(tmp_path, text)).curves == {"train/loss": {1: 0.5, 3: 0.3}}


def test_a_round_written_twice_keeps_the_later_value_in_order_of_rounds(tmp_path: Path) -> None:
    text = "round,metric,value\n1,val/auroc,0.5\n3,val/auroc,0.7\n2,val/auroc,0.6\n3,val/auroc,0.8\n"
    assert list(read_run(write_metrics(tmp_path, text)).curves["val/auroc"].items()) == [(1, 0.5), (2, 0.6), (3, 0.8)]


def test_undefined_values_are_no_points(tmp_path: Path) -> None:
    text = "round,metric,value\n1,a,nan\n2,a,\n3,a,None\n4,a,inf\n5,a,1\n"
    run = read_run(write_metrics(tmp_path, text))
    assert run.curves == {"a": {5: 1.0}}
    assert not any("torn" in note for note in run.notes)


def test_summary_keeps_undefined_apart_from_zero(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "summary.json").write_text('{"a": null, "b": NaN, "c": 0, "d": "text", "e": true, "f": Infinity}')
    assert read_run(tmp_path).summary == {"a": None, "b": None, "c": 0.0, "d": None, "e": None, "f": None}


def test_task_metrics_are_told_from_means_and_may_hold_a_slash(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    summary = {"test/auroc": 0.9, "test/worst_task_auroc": 0.8, "test/s1/auroc": 0.7, "test/a/b/auroc": None, "val/s1/auroc": 0.1}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert read_run(tmp_path).task_metric("auroc") == {"s1": 0.7, "a/b": None}


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "predictions.npz", "federation.npz"])
def test_a_damaged_file_is_said_and_the_rest_is_read(tmp_path: Path, fabricate, name: str) -> None:
    fabricate(tmp_path, num_tasks=3, num_clients=2, num_rounds=5)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    run = read_run(tmp_path)
    assert len(run.notes) == 1
    assert run.notes[0].startswith(f"{name} could not be read")
    assert run.curves


def test_arrays_that_do_not_fit_one_another_are_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    square = np.ones((2, 3), dtype=bool)
    np.savez(tmp_path / "federation.npz", positives=square, negatives=square, assignment=square.T, images=np.ones(2))
    run = read_run(tmp_path)
    assert run.federation is None
    assert any("assignment must have shape (2, 3), got (3, 2)" in note for note in run.notes)
