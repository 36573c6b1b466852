"""Tracking of a run: plain files in the run directory, and W&B (offline where no account is set up, never with a prompt).

`metrics.csv` has rows (round, metric, value) and is only appended to, so a killed run loses at most its last line.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mtl.base.files import atomic_write, naming
from mtl.run.directory import RECORD
from mtl.run.environment import write_environment
from mtl.run.wandb_run import WandbOptions, WandbRun


class Tracker:
    """The files of one run directory and, unless disabled, its W&B run.

    Args:
        run_dir: the directory.
        config: plain nested values.
        wandb: None for the defaults.
        last_round: round up to which a resumed run keeps its numbers, None to start from the beginning.
        data: fingerprint of the data.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        *,
        wandb: WandbOptions | None = None,
        last_round: int | None = None,
        data: str | None = None,
    ) -> None:
        self.run_dir = run_dir
        write_environment(run_dir, last_round, {"seed": config.get("seed"), "data": data})
        if last_round is None:
            # A run that failed before may have left one.
            (run_dir / RECORD).unlink(missing_ok=True)
        self._file = _open_metrics(run_dir / "metrics.csv", last_round)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._wandb = WandbRun(run_dir, config, wandb or WandbOptions(), read_rounds(run_dir / "metrics.csv"))

    def log(self, round: int, metrics: Mapping[str, float | None]) -> None:
        """Append the numbers of a round; undefined ones are left out."""
        defined = {name: value for name, value in metrics.items() if value is not None}
        with naming(self.run_dir / "metrics.csv"):
            self._rows.writerows((round, name, repr(float(value))) for name, value in defined.items())
            self._file.flush()
        self._wandb.log(round, defined)

    def finish(self, summary: Mapping[str, float | str | None], pictures: Sequence[Path] = ()) -> None:
        """Close the files, and send the summary, as numbers and as a table, and the pictures to W&B."""
        self._file.close()
        self._wandb.finish(summary, pictures, read_rounds(self.run_dir / "metrics.csv"))

    def abandon(self) -> None:
        """Close the files of a run that did not end well."""
        self._file.close()
        self._wandb.abandon(read_rounds(self.run_dir / "metrics.csv"))


def complete_record(
    run_dir: Path,
    config: Mapping[str, Any],
    wandb: WandbOptions,
    summary: Mapping[str, float | str | None],
    pictures: Sequence[Path],
) -> None:
    """Record a finished run again at W&B, which was killed while it was recorded."""
    rounds = read_rounds(run_dir / "metrics.csv")
    WandbRun(run_dir, config, wandb, rounds).finish(summary, pictures, rounds)


def read_rounds(metrics: Path) -> dict[int, dict[str, float]]:
    """Read the numbers of `metrics.csv` by round."""
    rounds: dict[int, dict[str, float]] = {}
    with metrics.open(encoding="utf-8", newline="") as file:
        for round, name, value in list(csv.reader(file))[1:]:
            rounds.setdefault(int(round), {})[name] = float(value)
    return dict(sorted(rounds.items()))


def _open_metrics(path: Path, last_round: int | None) -> TextIO:
    rows = [] if last_round is None or not path.exists() else path.read_text(encoding="utf-8").splitlines()[1:]
    with atomic_write(path) as file:
        file.write(b"round,metric,value\n")
        for row in rows:
            parts = row.split(",")
            # A killed run may have torn its last line.
            if len(parts) >= 3 and parts[0].isdigit() and int(parts[0]) <= (last_round or 0):
                file.write(f"{row}\n".encode())
    return path.open("a", encoding="utf-8", newline="")
