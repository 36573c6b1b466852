"""What the file of a study states: the runs, how a table is made of them, and earlier numbers.

    title: Forty people on eight devices
    hours: 1.2                                 # of the whole study, on one core
    data: [celeba]                             # data sets that must be at hand, in the folder that {data} stands for
    words: ["data.root={data}"]                # of every run, as after `mtl train`
    seeds: [0, 1, 2, 3, 4]
    sources: {people: [+experiment=...]}       # trained first and not tabulated; {people} stands for the run directory
    rows:
      - {name: federated, words: [+experiment=orl], seeds: [0, 1], stated: [98.4 ± 1.2, null]}
    columns:
      rank-1 %: {metric: test/rank1, scale: 100, digits: 1}
    baseline: federated                        # the row that others are tested against, in the columns of `compare`
    compare: [rank-1 %]
    figure: [rank-1 %]
    published: [{name: SOM + CNN, source: Lawrence et al. 1997, cells: [96.2]}]
    then: {words: [verify, "{run}"], makes: verification-lfw.json}     # a command of mtl for each run that is done
    quick: {words: [rounds=2], seeds: 2}       # the study at reduced size, with so many seeds of each row

In words, {0 x 40} stands for forty zeros with commas between. `stated` and `cells` have an entry for each column, null where nothing is
stated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtl.report.tables import Column, scaled, scaled_unit
from mtl.studies.stated import Stated


@dataclass(frozen=True)
class StudyColumn:
    """A column.

    Attributes:
        title: its head.
        metric: key of `summary.json`, a curve of `metrics.csv` (with `round`), `FILE.json/key/key` of a file in the run directory, or
            `delta_m/METRIC` (with `against`).
        scale: factor of the printed numbers.
        digits: behind the point.
        unit: such as B, printed with a decimal prefix, in place of `scale` and `digits`.
        better: higher, lower or none.
        show: mean (with its spread over the seeds), minimum or maximum.
        round: at which a curve is read.
        against: the row of single-task runs, for delta-m.
        error: metric of the spread of a single run, such as a standard error over folds.
        judged: whether stated values are checked; times of a machine are not.
    """

    title: str
    metric: str
    scale: float = 1.0
    digits: int = 3
    unit: str | None = None
    better: str = "higher"
    show: str = "mean"
    round: int | None = None
    against: str | None = None
    error: str | None = None
    judged: bool = True

    @property
    def writer(self) -> Column:
        """The column as `mtl.report.tables` writes its cells."""
        if self.show != "mean":
            return Column(
                self.title, self.metric, lambda spread: f"{getattr(spread, self.show) * self.scale:.{self.digits}f}", True
            )
        write = scaled(self.scale, self.digits) if self.unit is None else scaled_unit(self.unit)
        return Column(self.title, self.metric, write, self.better == "higher")


@dataclass(frozen=True)
class StudyRow:
    """A row: runs that differ in their seed.

    Attributes:
        name: as printed.
        words: of its runs, after those of the study.
        seeds: of its runs.
        stated: by title of a column.
        values: replace `{NAME}` in the metrics of the columns.
        only: titles of the columns that mean something for its runs, None for all.
    """

    name: str
    words: tuple[str, ...]
    seeds: tuple[int, ...]
    stated: Mapping[str, Stated] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Published:
    """A row of numbers from elsewhere: its name, source, and cells by title of a column."""

    name: str
    source: str
    cells: Mapping[str, Stated]


@dataclass(frozen=True)
class Then:
    """A command of mtl for each run that is done, and the file that it makes in the run directory."""

    words: tuple[str, ...]
    makes: str


@dataclass(frozen=True)
class Quick:
    """The study at reduced size: words after those of every run, and how many seeds of each row."""

    words: tuple[str, ...]
    seeds: int = 1


@dataclass(frozen=True)
class Definition:
    """A study as its file states it; see the module."""

    name: str
    path: Path
    title: str
    hours: float
    data: tuple[str, ...]
    sources: Mapping[str, tuple[str, ...]]
    rows: tuple[StudyRow, ...]
    columns: tuple[StudyColumn, ...]
    baseline: str | None
    compare: tuple[str, ...]
    figure: tuple[str, ...]
    published: tuple[Published, ...]
    quick: Quick
    then: Then | None = None
    notes: tuple[str, ...] = ()

    def column(self, title: str) -> StudyColumn:
        """The column of this title."""
        return next(column for column in self.columns if column.title == title)
