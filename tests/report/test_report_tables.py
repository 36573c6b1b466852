"""The comparison as text: means and deviations by hand, human units, and nothing that is read as markup."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mtl.report.groups import Spread
from mtl.report.tables import UNKNOWN, comparison_table, markdown_table, write_bytes


def write_run(path: Path, seed: int, mode: str, summary: dict[str, float | None]) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(json.dumps({"seed": seed, "mode": mode}))
    (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "a", 0, "x|[bold]", {"test/rank1": 0.90, "test/auroc": 0.5, "fit/bytes_up_per_client": 1_500_000.0}),
        write_run(
            tmp_path / "b", 1, "x|[bold]", {"test/rank1": 0.94, "test/auroc": None, "fit/bytes_up_per_client": 2_500_000.0}
        ),
        write_run(tmp_path / "c", 0, "local", {"test/rank1": None, "fit/seconds": 12.34}),
    ]


def test_markdown_holds_mean_and_sample_deviation_by_hand(runs: list[Path]) -> None:
    # rank-1: mean 92 %, deviation sqrt((2² + 2²) / 1) = 2.83; bytes: 2.0 MB ± sqrt(0.5) = 0.71
    lines = markdown_table(runs).splitlines()
    assert lines[0].startswith("| Run | n | Rank-1 % | AUROC |")
    assert lines[2].startswith("| x\\|[bold] | 2 | 92.0 ± 2.8 | 0.500 (n=1) |")
    assert "| 2.0 ± 0.7 MB |" in lines[2]
    assert lines[3] == f"| local | 1 | {UNKNOWN} | {UNKNOWN} | {UNKNOWN} | {UNKNOWN} | {UNKNOWN} | 12.3 | {UNKNOWN} | {UNKNOWN} |"


def test_the_terminal_shows_the_same_and_reads_no_markup(runs: list[Path]) -> None:
    console = Console(width=250, file=StringIO())
    console.print(comparison_table(runs))
    text = console.file.getvalue()
    assert all(words in text for words in ("x|[bold]", "92.0 ± 2.8", "2.0 ± 0.7 MB"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (2.5e9, "2.5 GB"),
        (3e21, "3000000.0 PB"),
    ],
)
def test_bytes_are_in_the_unit_that_suits_them(value: float, text: str) -> None:
    assert write_bytes(Spread(value, None, value, value, 1)) == text


def test_no_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one run directory, got none"):
        markdown_table([])
