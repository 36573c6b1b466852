"""Tracking of a run: plain files in the run directory, and W&B (offline where no account is set up, never with a prompt).

`metrics.csv` has rows (round, metric, value) and is only appended to, so a killed run loses at most its last line.
"""

import contextlib
import csv
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mtl.base.files import atomic_write, naming, write_json
from mtl.run.environment import environment

logger = logging.getLogger(__name__)
WANDB_TIMEOUT = 20.0  # seconds to wait for the server
LONGEST = 128  # letters of the longest name that the server takes
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True)
class WandbOptions:
    """Options of the run at W&B, named as W&B names them; `mode` is one of `WANDB_MODES`, `project` may be ENTITY/PROJECT."""

    mode: str = "auto"
    project: str = "mtl"
    group: str | None = None
    name: str | None = None
    tags: Sequence[str] = ()
    job_type: str | None = None
    log_model: bool = False


class Tracker:
    """The files of one run directory and, unless disabled, its W&B run.

    Args:
        run_dir: the directory.
        config: plain nested values.
        wandb: None for the defaults.
        last_round: round up to which a resumed run keeps its numbers, None to start from the beginning.
    """

    def __init__(
        self, run_dir: Path, config: Mapping[str, Any], *, wandb: WandbOptions | None = None, last_round: int | None = None
    ) -> None:
        self.run_dir = run_dir
        if last_round is None:
            write_json(run_dir / "environment.json", environment())
            # A run that failed before may have left one.
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
        """Close the files, and send the summary, as numbers and as a table, and the pictures to W&B."""
        self._file.close()
        self._wandb.finish(summary, pictures)

    def abandon(self) -> None:
        """Close the files of a run that did not end well."""
        self._file.close()
        self._wandb.abandon()


class WandbRun:
    """A run at W&B. An error of W&B never ends the run: it is logged once, and nothing more is sent.

    Args:
        run_dir: the run directory.
        config: plain nested values.
        options: of the run at W&B.
        earlier: the numbers of a resumed run by round. An offline run writes a new folder after a resume, which replaces the earlier one
            when it is sent; so these are written to it too.
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
        """Log the numbers of a round."""
        with self._guarded():
            if self._run is not None:
                self._run.log({"round": round, **metrics}, step=round)

    def finish(self, summary: Mapping[str, float | str | None], pictures: Sequence[Path]) -> None:
        """Send the summary, the pictures and, where asked for, the model, and finish the run."""
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
        """Mark the run as failed."""
        with self._guarded():
            if self._run is not None:
                self._run.finish(exit_code=1)

    def _model(self) -> Any:
        """The best or the last model with its configuration; once downloaded it is a run directory for `mtl export`."""
        import wandb

        artifact = wandb.Artifact(f"model-{_wandb_id(self.run_dir)}", type="model")
        best = self.run_dir / "checkpoints" / "best.ckpt"
        model = best if best.exists() else best.with_name("last.ckpt")
        for path in (self.run_dir / "config.yaml", model):
            artifact.add_file(str(path), name=path.relative_to(self.run_dir).as_posix())
        return artifact

    def _mode(self, mode: str) -> str:
        """Choose online, offline or disabled."""
        if mode != "auto":
            return mode
        variable = os.environ.get("WANDB_MODE", "")
        if variable in WANDB_MODES[1:]:
            return variable
        if variable in ("dryrun", "run"):  # W&B's older words
            return "offline" if variable == "dryrun" else "online"
        if variable:
            logger.warning("WANDB_MODE must be one of %s, got %s: it is ignored", ", ".join(WANDB_MODES[1:]), variable)
        with self._guarded():
            return "online" if _has_account() else "offline"
        return "offline"

    def _define(self, run: Any) -> None:
        """Make the round the horizontal axis of the curves."""
        run.define_metric("round")
        run.define_metric("*", step_metric="round")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Call W&B with its files in the run directory, whatever HOME is, and log the errors that it raises."""
        folder = self.run_dir / "wandb"
        places = {name: str(folder / "cache") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR") if name not in os.environ}
        # The mode is passed as an argument; W&B would raise for an unknown WANDB_MODE.
        before = {name: os.environ.get(name) for name in (*places, "WANDB_MODE", "WANDB_SILENT")}
        os.environ.update(places | {"WANDB_SILENT": "true"})
        os.environ.pop("WANDB_MODE", None)
        try:
            yield
        except Exception as error:  # noqa: BLE001 the run does not depend on it
            logger.warning(
                "W&B failed (%s: %s): the run continues, and its numbers are in metrics.csv", type(error).__name__, error
            )
            self._run = None
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


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
    """Whether W&B is logged in to the server that it would send to, without a prompt."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def _wandb_id(run_dir: Path) -> str:
    """The id of the run at W&B, which stays the same after a resume; `wandb agent` says that of a run of its sweep."""
    file = run_dir / "wandb.json"
    if not file.exists():
        of_agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        write_json(file, {"id": of_agent or secrets.token_hex(4)})
    return str(json.loads(file.read_text(encoding="utf-8"))["id"])
