"""Where a run's numbers go: always plain files in the run directory, and W&B (offline where no account is set up, never a prompt).

`metrics.csv` is tidy (round, metric, value) and only ever grows at its end, so a killed run loses at most its last line.
"""

import csv
import importlib.metadata
import json
import logging
import netrc
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from mtl.files import atomic_write, write_json

logger = logging.getLogger(__name__)
LIBRARIES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "hydra-zen",
    "omegaconf",
    "numpy",
    "wandb",
)
WANDB_TIMEOUT = 20.0  # seconds to wait for the server
WANDB_MODES = ("auto", "online", "offline", "disabled")


class Tracker:
    """The files of one run directory and, unless disabled, its W&B run.

    config: plain nested values; last_round: a resumed run keeps its numbers up to this round, None starts anew.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        *,
        wandb: str = "auto",
        project: str = "mtl",
        group: str | None = None,
        name: str | None = None,
        last_round: int | None = None,
    ) -> None:
        self.run_dir = run_dir
        if last_round is None:
            write_json(run_dir / "environment.json", environment())
            # A start that failed before may have left one.
            (run_dir / "wandb.json").unlink(missing_ok=True)
        self._wandb = _start_wandb(run_dir, config, wandb, project, group, name)
        self._file = _open_metrics(run_dir / "metrics.csv", last_round)
        self._rows = csv.writer(self._file, lineterminator="\n")

    def log(self, round: int, metrics: Mapping[str, float | None]) -> None:
        """Append the numbers of a round; undefined ones are left out."""
        defined = {name: value for name, value in metrics.items() if value is not None}
        self._rows.writerows((round, name, repr(float(value))) for name, value in defined.items())
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(defined, step=round)

    def finish(self, summary: Mapping[str, float | None], pictures: Sequence[Path] = ()) -> None:
        """Close; the summary, as numbers and as a table, and the pictures go to W&B."""
        self._file.close()
        if self._wandb is not None:
            import wandb

            self._wandb.summary.update({name: value for name, value in summary.items() if value is not None})
            shown = {name: value for name, value in summary.items() if value is not None and name.count("/") == 1}
            table = wandb.Table(columns=["metric", "value"], data=[[name, value] for name, value in shown.items()])
            self._wandb.log({"summary": table} | {f"figures/{p.stem}": wandb.Image(str(p)) for p in pictures})
            self._wandb.finish()

    def abandon(self) -> None:
        """Close the files of a run that did not end well."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=1)


def environment() -> dict[str, Any]:
    """The commit, library versions, command and machine of this process."""
    versions = {name: _version(name) for name in LIBRARIES}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "mtl": _version("mtl"),
        "python": platform.python_version(),
        "versions": versions,
        "command": " ".join(sys.argv),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _open_metrics(path: Path, last_round: int | None) -> TextIO:
    rows = [] if last_round is None or not path.exists() else path.read_text().splitlines()[1:]
    with atomic_write(path) as file:
        file.write(b"round,metric,value\n")
        for row in rows:
            parts = row.split(",")
            # A killed run may have torn its last line.
            if len(parts) >= 3 and parts[0].isdigit() and int(parts[0]) <= (last_round or 0):
                file.write(f"{row}\n".encode())
    return path.open("a", newline="")


def _has_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _start_wandb(run_dir: Path, config: Mapping[str, Any], mode: str, project: str, group: str | None, name: str | None) -> Any:
    chosen = mode
    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
    if chosen == "disabled":
        return None
    import wandb

    options: dict[str, Any] = {"project": project, "group": group, "name": name, "dir": str(run_dir), "config": dict(config)}
    settings = wandb.Settings(silent=True, console="off", init_timeout=WANDB_TIMEOUT, x_disable_stats=True)
    if chosen == "online":
        try:
            return wandb.init(mode="online", id=_wandb_id(run_dir), resume="allow", settings=settings, **options)
        except (wandb.errors.CommError, wandb.errors.UsageError, OSError) as error:
            logger.warning("W&B cannot be reached (%s): the run is recorded offline in %s", error, run_dir / "wandb")
            # The failed attempt keeps the id for this process.
            (run_dir / "wandb.json").unlink()
    return wandb.init(mode="offline", id=_wandb_id(run_dir), settings=settings, **options)


def _wandb_id(run_dir: Path) -> str:
    """The id of the run at W&B, the same after a resume."""
    file = run_dir / "wandb.json"
    if not file.exists():
        write_json(file, {"id": secrets.token_hex(4)})
    return str(json.loads(file.read_text())["id"])
