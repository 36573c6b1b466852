"""What differs from the baseline and from the best, on numbers made by hand."""

from collections.abc import Sequence

import pytest
import scipy.stats

from mtl.studies.comparison import compare_with, marks, warnings
from mtl.studies.definition import StudyColumn, StudyRow
from mtl.studies.jobs import DONE, Job
from mtl.studies.results import Cell, RowResult

COLUMN = StudyColumn("rank-1 %", "test/rank1")
BASE = [0.90, 0.91, 0.93, 0.92, 0.94]
ABOVE = [0.95, 0.97, 0.98, 0.96, 0.99]
NEAR = [0.89, 0.93, 0.92, 0.93, 0.94]


def result(name: str, values: Sequence[float], *, first: int = 0, expected: int | None = None) -> RowResult:
    seeds = tuple(range(first, first + (expected or len(values))))
    cell = Cell(dict(zip(seeds, values, strict=False)), len(seeds), None)
    jobs = tuple(Job(name, seed, DONE if seed in cell.values else "new", None, 1) for seed in seeds)
    return RowResult(StudyRow(name, (), seeds), jobs, {COLUMN.title: cell})


def test_rows_are_compared_seed_by_seed_after_holms_correction() -> None:
    near, above = compare_with("base", COLUMN, [result("near", NEAR), result("base", BASE), result("above", ABOVE)])
    raw = [scipy.stats.ttest_rel(values, BASE).pvalue for values in (NEAR, ABOVE)]
    assert raw[1] < raw[0]
    assert (near.row, near.pairs, near.t) == ("near", 5, pytest.approx(raw[0]))
    assert (above.row, above.t) == ("above", pytest.approx(2 * raw[1]))
    assert above.difference == pytest.approx(0.05)
    assert above.flip == pytest.approx(2 * 0.0625)
    assert above.interval is not None
    assert above.interval[0] > 0
    assert warnings([near, above])[0].startswith("With 5 pairs the sign-flip test cannot give a p-value below 0.0625")


def test_six_pairs_can_show_a_difference() -> None:
    (one,) = compare_with("base", COLUMN, [result("base", [*BASE, 0.9]), result("above", [*ABOVE, 0.96])])
    assert one.flip == 2**-5
    assert not warnings([one])


def test_rows_without_common_seeds_are_compared_by_welch() -> None:
    (one,) = compare_with("base", COLUMN, [result("base", BASE), result("above", ABOVE, first=5)])
    assert (one.pairs, one.flip, one.interval) == (0, None, None)
    assert one.t == pytest.approx(scipy.stats.ttest_ind(ABOVE, BASE, equal_var=False).pvalue)
    assert "Welch" in warnings([one])[-1]


def test_an_incomplete_row_is_not_compared_and_not_marked() -> None:
    results = [result("base", BASE), result("above", ABOVE[:4], expected=5)]
    assert compare_with("base", COLUMN, results) == []
    assert compare_with("above", COLUMN, results) == []
    assert marks(COLUMN, results) == {}


def test_the_best_is_marked_with_what_is_not_told_from_it() -> None:
    results = [result("near", NEAR), result("base", BASE), result("above", ABOVE)]
    assert marks(COLUMN, results) == {"above": "best"}
    assert marks(COLUMN, results[:2]) == {"near": "best", "base": "like the best"}
    lower = StudyColumn("rank-1 %", "test/rank1", better="lower")
    assert marks(lower, results) == {"base": "best", "near": "like the best"}
    assert marks(StudyColumn("rank-1 %", "test/rank1", better="none"), results) == {}


def test_one_seed_tells_nothing_apart() -> None:
    results = [result("base", [0.9]), result("other", [0.8])]
    assert marks(COLUMN, results) == {"base": "best"}
    (one,) = compare_with("base", COLUMN, results)
    assert (one.pairs, one.t, one.flip) == (1, None, 1.0)
    assert "1 row cannot be tested" in warnings([one])[-1]


def test_equal_means_are_all_best() -> None:
    assert marks(COLUMN, [result("a", ABOVE), result("b", ABOVE), result("c", NEAR)])["b"] == "best"
