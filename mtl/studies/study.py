"""A published table as an object: its jobs, its numbers and its files.

import mtl

study = mtl.Study("orl")
study.rows()      # a dictionary for each run
study.frame()     # the same in pandas
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.report.table_files import TextTable, csv_text, latex, markdown, save_text
from mtl.studies.comparison import Comparison, compare_with, marks, warnings
from mtl.studies.data_needed import missing_data
from mtl.studies.figure import write_figure
from mtl.studies.files import study_file
from mtl.studies.jobs import DONE, Grid, Job
from mtl.studies.reading import read_definition
from mtl.studies.results import RowResult, read_results
from mtl.studies.table import comparison_table, main_table, numbers, verdict_table, verdicts

if TYPE_CHECKING:
    import pandas

ROOT = Path("runs") / "studies"


class Study:
    """A study and the runs that are there of it. It trains nothing; `mtl study NAME` does.

    Args:
        name: of the study (`mtl study --list`), or a YAML file.
        folder: of its run directories; default runs/studies/NAME, with -quick behind the name for `quick`.
        data: folder of the data.
        quick: take the study at reduced size.
        more_seeds: runs that each row gets in addition.
        words: as after `mtl train`, such as trainer.threads=1, which must not change what a run computes.

    Raises:
        ValueError: there is no such study, or its file is wrong.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: Path | str | None = None,
        data: str = "data",
        quick: bool = False,
        more_seeds: int = 0,
        words: Sequence[str] = (),
    ) -> None:
        self.definition = read_definition(study_file(str(name)))
        self.quick, self.data = quick, Path(data).expanduser()
        default = ROOT / (self.definition.name + ("-quick" if quick else ""))
        self.folder = default if folder is None else Path(folder)
        self.grid = Grid(self.definition, self.folder, data=str(self.data), quick=quick, more_seeds=more_seeds, words=words)

    def jobs(self) -> list[Job]:
        """All runs, and which of them are done now."""
        return self.grid.jobs()

    def missing_data(self) -> list[str]:
        """A line for each data set that is not at hand, with where it is to be had."""
        return missing_data(self.definition.data, self.data)

    def results(self) -> list[RowResult]:
        """The rows of the table, with what the runs that are done have of each column."""
        return read_results(self.grid.rows, self.definition.columns, self.jobs())

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each run that is done: row, seed, run directory, and the columns by title, in the unit of the table."""
        return self._rows(self.results())

    def _rows(self, results: Sequence[RowResult]) -> list[dict[str, Any]]:
        return [
            {"row": result.row.name, "seed": job.seed, "run": str(job.run_dir)}
            | {
                column.title: None if (value := result.cells[column.title].values.get(job.seed)) is None else value * column.scale
                for column in self.definition.columns
            }
            for result in results
            for job in result.jobs
            if job.state == DONE
        ]

    def frame(self) -> "pandas.DataFrame":
        """`rows` as a data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Study.frame needs pandas: pip install 'mtl[pandas]'; Study.rows needs nothing") from error
        header = ["row", "seed", "run", *(column.title for column in self.definition.columns)]
        return pandas.DataFrame(self.rows(), columns=header)

    def tables(self) -> list[TextTable]:
        """The table, what differs from the baseline, and what became of the stated values; the latter two where there is something."""
        return self._tables(self.results())

    def _tables(self, results: Sequence[RowResult]) -> list[TextTable]:
        marked = {column.title: marks(column, results) for column in self.definition.columns}
        tables = [main_table(self.definition, results, marked, quick=self.quick)]
        comparisons = self._comparisons(results)
        if comparisons and self.definition.baseline is not None:
            columns = {column.title: column for column in self.definition.columns}
            tables.append(comparison_table(self.definition.baseline, comparisons, columns, warnings(comparisons)))
        stated = [] if self.quick else verdicts(self.definition, results)
        if any(one.measured is not None for one in stated):
            tables.append(verdict_table(stated))
        return tables

    def write(self, folder: Path | None = None) -> list[Path]:
        """Write `table.md`, `table.tex`, `table.csv`, `runs.csv`, `figure.png` and `figure.pdf`.

        Args:
            folder: default the folder `table` next to the run directories.

        Returns:
            The files.
        """
        folder = self.folder / "table" if folder is None else folder
        results = self.results()
        tables, rows = self._tables(results), self._rows(results)
        label = f"tab:{self.definition.name}"
        header = ["row", "seed", "run", *(column.title for column in self.definition.columns)]
        texts = {
            "table.md": "\n".join(map(markdown, tables)),
            "table.tex": "\n".join(latex(table, label + f"-{place}" * (place > 0)) for place, table in enumerate(tables)),
            "table.csv": csv_text(*numbers(self.definition, results, quick=self.quick)),
            "runs.csv": csv_text(header, [[row[name] for name in header] for row in rows]),
        }
        for name, text in texts.items():
            save_text(folder / name, text)
        return [*(folder / name for name in texts), *write_figure(self.definition, results, folder, quick=self.quick)]

    def _comparisons(self, results: Sequence[RowResult]) -> list[Comparison]:
        baseline = self.definition.baseline
        if baseline is None:
            return []
        return [
            one for title in self.definition.compare for one in compare_with(baseline, self.definition.column(title), results)
        ]
