"""What became of the jobs of a sweep: one small file each, since a job may run in another process or on another machine."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mtl.base.files import write_json
from mtl.cli.terminal import console

DONE, SKIPPED, FAILED, IN_USE, STOPPED = "done", "already done", "failed", "in use", "stopped"
TWIN = "skipped"  # the run of an earlier job
NOT_STARTED = "not started"
STYLES = {
    DONE: "green",
    SKIPPED: "green",
    TWIN: "green",
    FAILED: "red",
    IN_USE: "yellow",
    STOPPED: "yellow",
    NOT_STARTED: "yellow",
}
STOP = "stop"  # the file that keeps further jobs from starting


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        number: of the job in the sweep.
        run: name of its run directory.
        outcome: one of the words above.
        reason: why it failed or was skipped, or who works there.
    """

    number: int
    run: str
    outcome: str
    reason: str = ""


class Records:
    """The outcomes of one sweep, in a hidden folder of the sweep's folder, which is gone when the sweep has ended.

    Args:
        folder: of the sweep.
        token: name of this sweep; several processes may sweep in one folder.
    """

    def __init__(self, folder: Path, token: str) -> None:
        self.path = folder / f".{token}"

    def write(self, outcome: Outcome) -> None:
        """Keep the outcome of a job."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / f"{outcome.number}.json", asdict(outcome))

    def read(self) -> dict[int, Outcome]:
        """The outcomes by the number of the job."""
        outcomes = [Outcome(**json.loads(file.read_text(encoding="utf-8"))) for file in self.path.glob("*.json")]
        return {outcome.number: outcome for outcome in sorted(outcomes, key=lambda outcome: outcome.number)}

    def stop(self) -> None:
        """Let no further job start."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / STOP).touch()

    @property
    def stopped(self) -> bool:
        """Whether the sweep was stopped."""
        return (self.path / STOP).exists()

    def remove(self) -> None:
        """Remove the folder of the records."""
        if self.path.exists():
            shutil.rmtree(self.path)


def print_outcomes(folder: Path, outcomes: Mapping[int, Outcome], planned: Sequence[str] | None) -> int:
    """Print the table that a sweep ends with.

    Args:
        folder: of the sweep.
        outcomes: by the number of the job.
        planned: names of the run directories of all jobs, None where the sweeper chooses jobs as it goes.

    Returns:
        The number of jobs that failed.
    """
    rows = list(outcomes.values())
    if planned is not None:
        rows = [outcomes.get(number, Outcome(number, name, NOT_STARTED)) for number, name in enumerate(planned)]
    table = Table("job", "run directory", "outcome", "reason", title=f"sweep in {folder}", title_justify="left")
    for row in rows:
        table.add_row(str(row.number), Text(row.run), Text(row.outcome, style=STYLES[row.outcome]), Text(row.reason))
    console().print(table)
    counts = Counter(row.outcome for row in rows)
    print(f"{len(rows)} job{'s'[: len(rows) != 1]}: " + ", ".join(f"{counts[word]} {word}" for word in STYLES if counts[word]))
    return counts[FAILED]
