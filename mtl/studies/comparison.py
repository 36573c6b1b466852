"""Which rows of a study differ: each from the baseline, and each from the best of a column.

Only rows whose runs are all done are compared. Rows that share at least two seeds are compared seed by seed, others by Welch's test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtl.studies.definition import StudyColumn
from mtl.studies.results import Cell, RowResult
from mtl.studies.statistics import LEVEL, holm, least_sign_flip, paired_t, sign_flip, t_interval, welch_t

BEST, LIKE_BEST = "best", "like the best"


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline in one column.

    Attributes:
        row: its name.
        column: title.
        pairs: number of common seeds, 0 where the rows are compared without pairing.
        difference: mean of the row minus that of the baseline, over the pairs where there are any.
        interval: of the mean difference, 95 %; None without pairs.
        t: p-value of the t test, paired or Welch's, None where it has none; after Holm's correction over the rows.
        flip: p-value of the exact sign-flip test, likewise.
    """

    row: str
    column: str
    pairs: int
    difference: float
    interval: tuple[float, float] | None
    t: float | None
    flip: float | None


def compare_with(baseline: str, column: StudyColumn, results: Sequence[RowResult]) -> list[Comparison]:
    """Compare every other complete row with the baseline; none where the baseline itself is incomplete."""
    cells = {result.row.name: result.cells[column.title] for result in results}
    base = cells[baseline]
    if not base.values or not base.is_complete:
        return []
    rows = [name for name, cell in cells.items() if name != baseline and cell.values and cell.is_complete]
    raw = [_compare(name, column.title, cells[name], base) for name in rows]
    t_values, flips = (_holm([getattr(one, test) for one in raw]) for test in ("t", "flip"))
    return [
        Comparison(one.row, one.column, one.pairs, one.difference, one.interval, t, flip)
        for one, t, flip in zip(raw, t_values, flips, strict=True)
    ]


def marks(column: StudyColumn, results: Sequence[RowResult]) -> dict[str, str]:
    """By name of a row: `best` for the highest (or lowest) mean, `like the best` where the t test does not tell it from that.

    A row that has too few runs to be tested gets no mark but that of the best.
    """
    cells = {result.row.name: result.cells[column.title] for result in results if result.cells[column.title].is_complete}
    means = {name: spread.mean for name, cell in cells.items() if (spread := cell.spread) is not None}
    if column.better == "none" or column.show != "mean" or len(means) < 2:
        return {}
    best = (max if column.better == "higher" else min)(means, key=lambda name: means[name])
    others = {name: _compare(name, column.title, cells[name], cells[best]).t for name in means if name != best}
    tested = {name: p for name, p in others.items() if p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    equal = {name: BEST for name, mean in means.items() if mean == means[best]}
    return {name: LIKE_BEST for name, p in adjusted.items() if p > LEVEL} | equal


def warnings(comparisons: Sequence[Comparison]) -> list[str]:
    """What the numbers of pairs do not let the tests show."""
    counts = sorted({one.pairs for one in comparisons if one.pairs and least_sign_flip(one.pairs) > LEVEL})
    notes = [
        f"With {count} pair{'s'[: count != 1]} the sign-flip test cannot give a p-value below {least_sign_flip(count):.4g}: "
        f"it cannot show a difference at the level of {LEVEL:g}."
        for count in counts
    ]
    single = [one.row for one in comparisons if one.t is None and one.pairs < 2]
    if single:
        notes.append(f"One run tells nothing of the spread: {len(single)} row{'s'[: len(single) != 1]} cannot be tested.")
    if any(not one.pairs and one.t is not None for one in comparisons):
        notes.append("Rows without common seeds (0 pairs) are compared by Welch's t test.")
    return notes


def _compare(name: str, title: str, cell: Cell, base: Cell) -> Comparison:
    common = [seed for seed in cell.values if seed in base.values]
    both = min(len(cell.values), len(base.values)) > 1
    if len(common) > 1 or (common and not both):
        differences = [cell.values[seed] - base.values[seed] for seed in common]
        mean = sum(differences) / len(differences)
        return Comparison(name, title, len(common), mean, t_interval(differences), paired_t(differences), sign_flip(differences))
    means = [spread.mean if (spread := one.spread) is not None else float("nan") for one in (cell, base)]
    return Comparison(
        name, title, 0, means[0] - means[1], None, welch_t(list(cell.values.values()), list(base.values.values())), None
    )


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over those that have a value."""
    known: Mapping[int, float] = {place: p for place, p in enumerate(p_values) if p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return [adjusted.get(place) for place in range(len(p_values))]
