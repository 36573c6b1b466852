"""The tables of a study: the numbers, what differs from the baseline, and what became of the stated values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtl.report.groups import Spread
from mtl.report.table_files import STRONG, WEAK, Entry, TextTable
from mtl.report.tables import UNKNOWN
from mtl.studies.comparison import BEST, Comparison
from mtl.studies.definition import Definition, StudyColumn
from mtl.studies.results import RowResult
from mtl.studies.stated import Stated
from mtl.studies.statistics import t_interval

EMPHASIS = {BEST: STRONG, "like the best": WEAK}
SHOWN_SEEDS = 8  # missing ones that a note names


@dataclass(frozen=True)
class Verdict:
    """What became of a stated value: row and column, the measured mean, and inside, outside, no spread or not measured."""

    row: str
    column: StudyColumn
    stated: Stated
    measured: Spread | None
    verdict: str


def main_table(
    definition: Definition, results: Sequence[RowResult], marked: Mapping[str, Mapping[str, str]], *, quick: bool
) -> TextTable:
    """The numbers of all rows, and the published ones below them.

    Args:
        definition: the study.
        results: of all rows.
        marked: by title of a column and name of a row, what the mean is among the others.
        quick: whether the runs are of reduced size.
    """
    brackets = False
    rows = []
    for result in results:
        entries = [Entry(result.row.name), Entry(_count(result))]
        for column in definition.columns:
            cell = result.cells[column.title]
            if cell.spread is None and cell.stated is not None and not quick:
                entries.append(Entry(f"[{cell.stated.text}]"))
                brackets = True
                continue
            unknown = UNKNOWN if cell.expected else ""
            text = unknown if cell.spread is None else column.writer.write(cell.spread)
            entries.append(Entry(text, EMPHASIS.get(marked[column.title].get(result.row.name, ""), "")))
        rows.append(tuple(entries))
    for row in () if quick else definition.published:
        cells = [row.cells[column.title].text if column.title in row.cells else "" for column in definition.columns]
        rows.append((Entry(f"{row.name} ({row.source})"), Entry(""), *map(Entry, cells)))
    title = f"QUICK, at reduced size, not the study itself: {definition.title}" if quick else definition.title
    header = ("run", "n", *(column.title for column in definition.columns))
    legend = _legend(rows, brackets)
    if not any(column.error for column in definition.columns):  # the notes say what ± is there
        legend.insert(0, "Mean ± sample standard deviation over n seeds.")
    notes = legend + _missing(results) + ([] if quick else list(definition.notes))
    return TextTable(title, header, tuple(rows), tuple(notes))


def comparison_table(
    baseline: str, comparisons: Sequence[Comparison], columns: Mapping[str, StudyColumn], notes: Sequence[str]
) -> TextTable:
    """What differs from the baseline, and how sure that is."""
    rows = []
    for one in comparisons:
        scale = columns[one.column].scale
        interval = UNKNOWN if one.interval is None else " to ".join(f"{scale * end:+.3g}" for end in one.interval)
        p_values = [UNKNOWN if p is None else f"{p:.2g}" for p in (one.t, one.flip)]
        texts = [one.row, one.column, str(one.pairs), f"{scale * one.difference:+.3g}", interval, *p_values]
        rows.append(tuple(map(Entry, texts)))
    header = ("run", "column", "pairs", "difference", "95 % interval", "p, t test", "p, sign flip")
    how = "Seed by seed; two-sided p-values after Holm's correction over the rows of a column."
    return TextTable(f"Against: {baseline}", header, tuple(rows), (how, *notes))


def verdicts(definition: Definition, results: Sequence[RowResult]) -> list[Verdict]:
    """What became of every stated value that does not depend on the machine."""
    found = []
    for result in results:
        for column in definition.columns:
            cell = result.cells[column.title]
            if cell.stated is None or not column.judged:
                continue
            shown = None if cell.spread is None else _shown(column, cell.spread)
            verdict = "not measured" if shown is None else cell.stated.verdict(shown)
            found.append(Verdict(result.row.name, column, cell.stated, cell.spread, verdict))
    return found


def verdict_table(found: Sequence[Verdict]) -> TextTable:
    """The stated values next to the measured ones."""
    rows = []
    for one in found:
        measured = UNKNOWN if one.measured is None else one.column.writer.write(one.measured)
        entries = [Entry(text) for text in (one.row, one.column.title, one.stated.text, measured)]
        rows.append((*entries, Entry(one.verdict, STRONG if one.verdict == "outside" else "")))
    counts = ", ".join(
        f"{sum(one.verdict == word for one in found)} {word}" for word in dict.fromkeys(one.verdict for one in found)
    )
    note = f"{counts}. Inside: the measured mean is within the stated mean ± its spread, to the last digit."
    return TextTable("Stated values", ("run", "column", "stated", "measured", "verdict"), tuple(rows), (note,))


def numbers(definition: Definition, results: Sequence[RowResult], *, quick: bool) -> tuple[list[str], list[list[object]]]:
    """The table for a spreadsheet: heads, and a line for each row, with numbers as they are printed, without prefixes of units.

    `low` and `high` are the ends of Student's interval of the mean, 95 %. Stated and published numbers are not those of `quick`.
    """
    parts = ("", " sd", " low", " high", *(() if quick else (" stated", " stated sd")))
    header = ["run", "n", "missing seeds", *(f"{column.title}{part}" for column in definition.columns for part in parts)]
    lines: list[list[object]] = []
    for result in results:
        line: list[object] = [result.row.name, len(result.jobs) - len(result.missing), " ".join(map(str, result.missing))]
        for column in definition.columns:
            cell, scale = result.cells[column.title], column.scale
            interval = (t_interval(list(cell.values.values())) if column.show == "mean" else None) or (None, None)
            shown: tuple[float | None, float | None] = (None, None)
            if cell.spread is not None:
                shown = (_shown(column, cell.spread), cell.spread.deviation if column.show == "mean" else None)
            values = (*shown, *interval, *(() if quick else _pair(cell.stated)))
            line += [None if value is None else value * scale for value in values]
        lines.append(line)
    for row in () if quick else definition.published:
        line = [f"{row.name} ({row.source})", None, None]
        for column in definition.columns:
            values = (*_pair(row.cells.get(column.title)), *[None] * 4)
            line += [None if value is None else value * column.scale for value in values]
        lines.append(line)
    return header, lines


def _pair(stated: Stated | None) -> tuple[float | None, float | None]:
    return (None, None) if stated is None else (stated.mean, stated.deviation)


def _shown(column: StudyColumn, spread: Spread) -> float:
    return float(getattr(spread, column.show))


def _count(result: RowResult) -> str:
    done, total = len(result.jobs) - len(result.missing), len(result.jobs)
    return str(done) if done == total else f"{done} of {total}"


def _legend(rows: Iterable[Sequence[Entry]], brackets: bool) -> list[str]:
    emphases = {entry.emphasis for row in rows for entry in row}
    notes = []
    if STRONG in emphases:
        weak = "underlined (in Markdown in italics): not told from it by a t test at the level of .05, after Holm's correction"
        notes.append("Bold: the best of a column" + (f"; {weak}." if WEAK in emphases else "."))
    if brackets:
        notes.append("In brackets: stated, no run is here.")
    return notes


def _missing(results: Sequence[RowResult]) -> list[str]:
    incomplete = [result for result in results if result.missing]
    if not incomplete:
        return []
    if all(len(result.missing) == len(result.jobs) for result in results):
        return ["Incomplete: no run is here."]
    lines = []
    for result in incomplete:
        seeds = ", ".join(map(str, result.missing[:SHOWN_SEEDS])) + (", ..." if len(result.missing) > SHOWN_SEEDS else "")
        lines.append(f"Incomplete, and not compared: {result.row.name} lacks seed {seeds}.")
    return lines
