"""Where a run's numbers go: always plain files in the run directory, and W&B (offline where no account is set up, never a prompt).

`metrics.csv` is tidy (round, metric, value) and only ever grows at its end, so a killed run loses at most its last line.
"""

import contextlib
import csv
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch

from mtl.base.files import atomic_write, naming, write_json

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
LONGEST = 128  # letters of a name that the server takes
COMMAND = "MTL_COMMAND"  # the environment variable that says to a rank or a sweep's job what its command line is
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True)
class WandbOptions:
    """mode: one of WANDB_MODES; project: or ENTITY/PROJECT; log_model: keep the model as an artifact; the others as W&B has them."""

    mode: str = "auto"
    project: str = "mtl"
    group: str | None = None
    name: str | None = None
    tags: Sequence[str] = ()
    job_type: str | None = None
    log_model: bool = False


class Tracker:
    """The files of one run directory and, unless disabled, its W&B run.

    config: plain nested values; last_round: a resumed run keeps its numbers up to this round, None starts anew.
    """

    def __init__(
        self, run_dir: Path, config: Mapping[str, Any], *, wandb: WandbOptions | None = None, last_round: int | None = None
    ) -> None:
        self.run_dir = run_dir
        if last_round is None:
            write_json(run_dir / "environment.json", environment())
            # A start that failed before may have left one.
            (run_dir / "wandb.json").unlink(missing_ok=True)
        self._file = _open_metrics(run_dir / "metrics.csv", last_round)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._wandb = WandbRun(run_dir, config, wandb or WandbOptions(), _rounds_in(run_dir / "metrics.csv"))

    def log(self, round: int, metrics: Mapping[str, float | None]) -> None:
        """Append the numbers of a round; undefined ones are left out."""
        defined = {name: value for name, value in metrics.items() if value is not None}
        with naming(self.run_dir / "metrics.csv"):
            self._rows.writerows((round, name, repr(float(value))) for name, value in defined.items())
            self._file.flush()
        self._wandb.log(round, defined)

    def finish(self, summary: Mapping[str, float | str | None], pictures: Sequence[Path] = ()) -> None:
        """Close; the summary, as numbers and as a table, and the pictures go to W&B."""
        self._file.close()
        self._wandb.finish(summary, pictures)

    def abandon(self) -> None:
        """Close the files of a run that did not end well."""
        self._file.close()
        self._wandb.abandon()


class WandbRun:
    """A run at W&B. What goes wrong there never ends the run: it is told once, and nothing more is sent.

    earlier: the numbers of a resumed run by round. An offline run writes a new folder after a resume, which takes the place of the one
    before when it is sent; so it holds these too.
    """

    def __init__(
        self, run_dir: Path, config: Mapping[str, Any], options: WandbOptions, earlier: Mapping[int, Mapping[str, float]]
    ) -> None:
        self.run_dir, self._run, self._log_model = run_dir, None, options.log_model
        mode = self._mode(options.mode)
        if mode == "disabled":
            return
        with self._guarded():
            import wandb

            entity, _, project = options.project.rpartition("/")
            arguments: dict[str, Any] = {
                "entity": entity or None,
                "project": project,
                "group": options.group and options.group[:LONGEST],
                "name": options.name and options.name[:LONGEST],
                "tags": list(options.tags),
                "job_type": options.job_type,
                "dir": str(run_dir),
                "config": dict(config),
            }
            settings = wandb.Settings(silent=True, console="off", init_timeout=WANDB_TIMEOUT, x_disable_stats=True)
            run = None
            if mode == "online":
                try:
                    run = wandb.init(mode="online", id=_wandb_id(run_dir), resume="allow", settings=settings, **arguments)
                    logger.info("W&B: %s", run.url)
                except (wandb.errors.Error, OSError) as error:
                    logger.warning("W&B cannot be reached (%s): the run is recorded offline in %s", error, run_dir / "wandb")
                    # The failed attempt keeps the id for this process.
                    (run_dir / "wandb.json").unlink()
            if run is None:
                run = wandb.init(mode="offline", id=_wandb_id(run_dir), settings=settings, **arguments)
                self._define(run)
                for round, metrics in earlier.items():
                    run.log({"round": round, **metrics}, step=round)
            else:
                self._define(run)
            self._run = run

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        with self._guarded():
            if self._run is not None:
                self._run.log({"round": round, **metrics}, step=round)

    def finish(self, summary: Mapping[str, float | str | None], pictures: Sequence[Path]) -> None:
        with self._guarded():
            if self._run is not None:
                import wandb

                self._run.summary.update({name: value for name, value in summary.items() if value is not None})
                # A column of a table at W&B is of one type: no text among the numbers.
                shown = [
                    [name, value] for name, value in summary.items() if isinstance(value, int | float) and name.count("/") == 1
                ]
                table = wandb.Table(columns=["metric", "value"], data=shown)
                self._run.log({"summary": table} | {f"figures/{p.stem}": wandb.Image(str(p)) for p in pictures})
                if self._log_model:
                    self._run.log_artifact(self._model())
                self._run.finish()

    def abandon(self) -> None:
        with self._guarded():
            if self._run is not None:
                self._run.finish(exit_code=1)

    def _model(self) -> Any:
        """The best model, or the last, with its configuration: downloaded, a run directory that `mtl export` takes."""
        import wandb

        artifact = wandb.Artifact(f"model-{_wandb_id(self.run_dir)}", type="model")
        best = self.run_dir / "checkpoints" / "best.ckpt"
        model = best if best.exists() else best.with_name("last.ckpt")
        for path in (self.run_dir / "config.yaml", model):
            artifact.add_file(str(path), name=path.relative_to(self.run_dir).as_posix())
        return artifact

    def _mode(self, mode: str) -> str:
        """online, offline or disabled."""
        if mode != "auto":
            return mode
        told = os.environ.get("WANDB_MODE", "")
        if told in WANDB_MODES[1:]:
            return told
        if told in ("dryrun", "run"):  # W&B's older words
            return "offline" if told == "dryrun" else "online"
        if told:
            logger.warning("WANDB_MODE must be one of %s, got %s: it is left aside", ", ".join(WANDB_MODES[1:]), told)
        with self._guarded():
            return "online" if _has_account() else "offline"
        return "offline"

    def _define(self, run: Any) -> None:
        """Curves over rounds, not over calls."""
        run.define_metric("round")
        run.define_metric("*", step_metric="round")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """W&B in an environment of its own: its files lie in the run directory, whatever HOME is, and what it raises is told."""
        folder = self.run_dir / "wandb"
        places = {name: str(folder / "cache") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR") if name not in os.environ}
        # The mode is said to it; a word in the environment that it does not know would be an error.
        before = {name: os.environ.get(name) for name in (*places, "WANDB_MODE", "WANDB_SILENT")}
        os.environ.update(places | {"WANDB_SILENT": "true"})
        os.environ.pop("WANDB_MODE", None)
        try:
            yield
        except Exception as error:  # noqa: BLE001 the run does not depend on it
            logger.warning("W&B fails (%s: %s): the run goes on, and metrics.csv has its numbers", type(error).__name__, error)
            self._run = None
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def environment() -> dict[str, Any]:
    """The commit, library versions, command and machine of this process."""
    versions = {name: _version(name) for name in LIBRARIES}
    # An installed package may lie in a repository that is not its own.
    ours = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "commit": _git("rev-parse", "HEAD") if ours else None,
        "dirty": ours and bool(_git("status", "--porcelain", "--untracked-files=no")),
        "mtl": _version("mtl"),
        "python": platform.python_version(),
        "versions": versions,
        "command": os.environ.get(COMMAND) or shlex.join(sys.argv),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu": _cpu(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    """The model of the processor, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "Hardware")))
    return next(named, "") or platform.processor() or platform.machine()


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


def _rounds_in(metrics: Path) -> dict[int, dict[str, float]]:
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


def _has_account() -> bool:
    """Whether W&B is logged in to the server that it would send to; it is asked itself, and prompts for nothing."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def _wandb_id(run_dir: Path) -> str:
    """The id of the run at W&B, the same after a resume."""
    file = run_dir / "wandb.json"
    if not file.exists():
        write_json(file, {"id": secrets.token_hex(4)})
    return str(json.loads(file.read_text(encoding="utf-8"))["id"])
