"""A choice among configurations is made by the mean of a validation metric, and says so."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mtl.cli.main import main
from mtl.report.choice import choice_table, choose
from mtl.report.groups import group_runs, read_groups
from mtl.report.page import write_report
from mtl.report.runs import read_run
from tests.report.test_page import Page
from tests.report.test_report_tables import write_run


def add(path: Path, **numbers: float | str | None) -> Path:
    """Add to the `summary.json` of a run; `val_best_rank1` stands for `val/best_rank1`."""
    file = path / "summary.json"
    more = {name.replace("_", "/", 1): value for name, value in numbers.items()}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Validation prefers b (mean .8 of .7 and .9) to a (.75); the test prefers a. c has a run without the metric, d has none with it."""
    numbers = [
        ("a", 0, 0.75, 0.99),
        ("b", 0, 0.7, 0.5),
        ("b", 1, 0.9, 0.6),
        ("c", 0, 0.1, 0.2),
        ("c", 1, None, 1.0),
        ("d", 0, None, 1.0),
    ]
    return [
        add(
            write_run(tmp_path / f"{mode}{seed}", seed, mode, {"test/rank1": test, "test/auroc": 0.5}),
            fit_chosen_by="val/rank1",
            val_best_rank1=val,
            val_best_auroc=0.5,
        )
        for mode, seed, val, test in numbers
    ]


def test_groups_stand_in_the_order_of_their_mean_whatever_the_test_says(runs: list[Path]) -> None:
    choice = choose(group_runs([read_run(run) for run in runs]), "val/rank1")
    assert choice.header[:5] == ["Choice", "Run", "n", "val/rank1 %", "Test Rank-1 %"]
    # b: means 80 and 55 %, deviations sqrt((10² + 10²) / 1) = 14.1 and sqrt((5² + 5²) / 1) = 7.1
    assert [row[:5] for row in choice.rows] == [
        ["best", "b", "2", "80.0 ± 14.1", "55.0 ± 7.1"],
        ["", "a", "1", "75.0", "99.0"],
        ["", "c", "1", "10.0", "20.0"],
    ]
    assert choice.sentence.startswith("Looked at 3 configurations (4 runs), ordered by their mean val/rank1")
    assert "made on validation images" in choice.sentence
    assert [line.split("/")[-2:] for line in choice.left_out] == [["c1 has no val", "rank1"], ["d0 has no val", "rank1"]]


def test_equal_means_are_all_best(runs: list[Path]) -> None:
    choice = choose(group_runs([read_run(run) for run in runs]), "val/auroc")
    assert [row[:2] for row in choice.rows] == [["best", name] for name in "abcd"]
    assert choice.header[3] == "val/auroc"


def test_runs_that_differ_in_their_seed_alone_leave_nothing_to_choose(runs: list[Path]) -> None:
    choice = choose(group_runs([read_run(run) for run in runs[1:3]]), "val/rank1")
    assert choice.sentence.startswith("Looked at 1 configuration (2 runs): there is nothing to choose between")
    assert [row[0] for row in choice.rows] == [""]


@pytest.mark.parametrize("by", ["test/rank1", "rank1", "val/best_rank1", "val/named"])
def test_what_is_no_validation_metric_is_refused_with_the_choices(runs: list[Path], by: str) -> None:
    with pytest.raises(ValueError, match=rf"--by must be one of val/rank1, val/auroc, got {by}"):
        write_report(runs, by=by)
    assert not (runs[0].parent / "report.html").exists()


def test_runs_without_validation_images_cannot_be_chosen_among(tmp_path: Path) -> None:
    run = add(write_run(tmp_path / "run", 0, "local", {"test/rank1": 0.5}), fit_chosen_by=None)
    with pytest.raises(ValueError, match="--by val/rank1 needs runs with validation images, and none of the 1 has"):
        choose(read_groups([run])[0], "val/rank1")


def test_the_page_and_the_terminal_say_how_the_choice_was_made(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *map(str, runs), "--by", "val/rank1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    text = Page(runs[0].parent / "report.html").text
    assert "Choice by val/rank1" in text
    assert text.index("best") < text.index("Side by side")
    for said in (printed, text):
        assert "Looked at 3 configurations (4 runs), ordered by their mean val/rank1" in said
        assert f"left out of the choice: {runs[-1]} has no val/rank1" in said
    # Those left out of the choice stay on the page, behind the others.
    assert text.index("\nd") > text.index("\nc") > text.index("\na") > text.index("\nb")


def test_without_a_choice_the_page_speaks_of_none_and_the_rule_is_no_number(runs: list[Path]) -> None:
    text = Page(write_report(runs)).text
    assert "Choice" not in text
    assert "fit/chosen_by" not in text
    assert "val/best_rank1" in text


def test_a_name_is_not_read_as_markup(tmp_path: Path) -> None:
    modes = ("[bold]x", "local")
    runs = [
        add(write_run(tmp_path / str(number), 0, mode, {"test/rank1": 0.5}), val_best_rank1=number)
        for number, mode in enumerate(modes)
    ]
    console = Console(width=250, file=StringIO())
    console.print(choice_table(runs, "val/rank1"))
    assert "[bold]x" in console.file.getvalue()


def test_a_choice_needs_no_torch(runs: list[Path]) -> None:
    code = "import sys; from mtl.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "report", *map(str, runs), "--by", "val/rank1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
