"""The record of a run at W&B. W&B calls each start of a run a segment, and keeps it in a folder of its own.

A run directory has one such folder at most, `wandb/offline-run-*` or, while it is online, `wandb/run-*`. An offline one holds the whole
run, so that `wandb sync` cannot send a part over the whole: a resumed run writes its earlier rounds again, from `metrics.csv`, and
removes what an earlier start left. Where an online run cannot be sent in time, the whole is written offline in its place.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtl.base.files import write_json
from mtl.run.directory import RECORD, is_recorded
from mtl.run.wandb_names import make_tags, metric_name, shown_config

logger = logging.getLogger(__name__)
INIT_TIMEOUT = 20.0  # seconds to wait for the server at the start
FINISH_TIMEOUT = 60.0  # and at the end, unless WANDB_FINISH_TIMEOUT says otherwise
LONGEST = 128  # letters of the longest name that the server takes
PROJECT = re.compile(rf"([^/\\#?%:]+/)?[^/\\#?%:]{{1,{LONGEST}}}")
WANDB_MODES = ("auto", "online", "offline", "disabled")
Rounds = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class WandbOptions:
    """Options of the run at W&B, named as W&B names them; `mode` is one of `WANDB_MODES`, `project` may be ENTITY/PROJECT.

    `job_type` is the mode of the run where it is None. With `system`, use of the processor, memory and GPU is recorded.
    """

    mode: str = "auto"
    project: str = "mtl"
    group: str | None = None
    name: str | None = None
    tags: Sequence[str] = ()
    job_type: str | None = None
    notes: str | None = None
    log_model: bool = False
    system: bool = False

    def __post_init__(self) -> None:
        if not PROJECT.fullmatch(self.project):
            raise ValueError(
                f"tracking.project must be PROJECT or ENTITY/PROJECT, of at most {LONGEST} letters without / \\ # ? % :, got {self.project}"
            )


class WandbRun:
    """A run at W&B. An error of W&B never ends the run: it is logged once, and nothing more is sent.

    Args:
        run_dir: the run directory.
        config: plain nested values.
        options: of the run at W&B.
        earlier: the numbers by round that `metrics.csv` holds already.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], options: WandbOptions, earlier: Rounds) -> None:
        self.run_dir, self._config, self._options = run_dir, config, options
        self._run: Any = None
        mode = self._mode(options.mode)
        if mode == "disabled":
            return
        with self._guarded():
            _remove_segments(run_dir)
            self._run = self._start_online() if mode == "online" else None
            self._run = self._run or self._start("offline")
            self._replay(earlier)

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of a round."""
        with self._guarded():
            if self._run is not None:
                self._log(round, metrics)

    def finish(self, summary: Mapping[str, float | str | None], pictures: Sequence[Path], rounds: Rounds) -> None:
        """Send the summary, the pictures and, where asked for, the model, and finish the run.

        Args:
            summary: as in `summary.json`.
            pictures: paths of PNGs.
            rounds: all numbers by round, for an offline record where the server does not take them in time.
        """
        with self._guarded():
            if self._run is not None:
                self._end(lambda: self._describe(summary, pictures), rounds)
                self._write_record(self._run.id, is_open=False)

    def abandon(self, rounds: Rounds) -> None:
        """Mark the run as failed. rounds: see `finish`."""
        with self._guarded():
            if self._run is not None:
                self._end(lambda: None, rounds, exit_code=1)

    def _end(self, describe: Callable[[], None], rounds: Rounds, exit_code: int = 0) -> None:
        """Finish the run; one that the server does not take in time is written offline in its place."""
        try:
            describe()
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            if self._run.offline:
                raise
            logger.debug("W&B's process or server has failed", exc_info=error)
            reason = str(error) or type(error).__name__
        else:
            return
        self._free_id()
        _remove_segments(self.run_dir)
        self._run = self._start("offline")
        self._replay(rounds)
        describe()
        self._run.finish(exit_code=exit_code)
        folder = Path(self._run.dir).parent
        logger.warning("W&B did not take the whole run (%s): `wandb sync %s` sends it", reason.rstrip("."), folder)

    def _start_online(self) -> Any:
        """Start the run online, or return None where the server does not answer."""
        import wandb

        try:
            run = self._start("online")
        except (wandb.errors.Error, OSError) as error:
            logger.warning("W&B cannot be reached (%s): the run is recorded offline in %s", error, self.run_dir / "wandb")
            self._free_id()
            _remove_segments(self.run_dir)
            return None
        logger.info("W&B: %s", run.url)
        return run

    def _start(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        options, entity, project = self._options, *self._options.project.rpartition("/")[::2]
        # An agent of a sweep at W&B chooses the project and the id itself.
        place: dict[str, Any] = (
            {} if "WANDB_SWEEP_ID" in os.environ else {"entity": entity or None, "project": project, "id": self._id()}
        )
        timeout: dict[str, Any] = {} if "WANDB_FINISH_TIMEOUT" in os.environ else {"finish_timeout": FINISH_TIMEOUT}
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT,
            finish_timeout_raises=True,
            x_disable_stats=not options.system,
            x_save_requirements=False,  # the run directory has the versions
            reinit="create_new",  # never the run of an earlier job in this process
            **timeout,
        )
        run = wandb.init(
            mode=mode,
            group=options.group and options.group[:LONGEST],
            name=options.name and options.name[:LONGEST],
            tags=make_tags(self._config, options.tags),
            job_type=options.job_type or self._config.get("mode"),
            notes=options.notes,
            dir=str(self.run_dir),
            config=shown_config(self._config, self.run_dir),
            resume="allow" if mode == "online" else None,
            settings=settings,
            **place,
        )
        self._write_record(run.id, is_open=True)
        run.define_metric("round")
        self._sections: set[str] = set()
        return run

    def _replay(self, rounds: Rounds) -> None:
        """Log rounds again that the record lacks: all of an offline one, those that did not reach the server of an online one."""
        for round, metrics in rounds.items():
            if round >= self._run.starting_step:
                self._log(round, metrics)

    def _log(self, round: int, metrics: Mapping[str, float]) -> None:
        named = {metric_name(name): value for name, value in metrics.items()}
        for section in dict.fromkeys(name.partition("/")[0] for name in named):
            if section not in self._sections:
                self._sections.add(section)
                # The best value of a validation metric; never of `monitor`, the test images.
                best: dict[str, Any] = {"summary": "min,max,last"} if section == "val" else {}
                self._run.define_metric(f"{section}/*", step_metric="round", **best)
        self._run.log({"round": round, **named}, step=round)

    def _describe(self, summary: Mapping[str, float | str | None], pictures: Sequence[Path]) -> None:
        import wandb

        self._run.summary.update({metric_name(name): value for name, value in summary.items() if value is not None})
        # A column of a table at W&B is of one type: no text among the numbers.
        shown = [[name, value] for name, value in summary.items() if isinstance(value, int | float) and name.count("/") == 1]
        table = wandb.Table(columns=["metric", "value"], data=shown)
        self._run.log({"summary": table} | {f"figures/{p.stem}": wandb.Image(str(p)) for p in pictures})
        if self._options.log_model:
            self._run.log_artifact(self._model())

    def _free_id(self) -> None:
        """Let this process use the id of the run again, or take another where it has more runs at W&B."""
        import wandb

        if wandb.run is None:
            with contextlib.suppress(OSError):  # W&B's process has died
                wandb.teardown()
        else:
            (self.run_dir / RECORD).unlink(missing_ok=True)

    def _id(self) -> str:
        """The id of the run at W&B, which stays the same after a resume."""
        file = self.run_dir / RECORD
        return str(json.loads(file.read_text(encoding="utf-8"))["id"]) if file.exists() else secrets.token_hex(4)

    def _write_record(self, run_id: str, *, is_open: bool) -> None:
        write_json(self.run_dir / RECORD, {"id": run_id, **({"open": True} if is_open else {})})

    def _model(self) -> Any:
        """The best or the last model with its configuration; once downloaded it is a run directory for `mtl export`."""
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
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
            return "online" if has_account() else "offline"
        return "offline"

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
            if not is_recorded(self.run_dir):  # nor does a later start try again
                self._write_record(self._id(), is_open=False)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def has_account() -> bool:
    """Whether W&B is logged in to the server that it would send to, without a prompt."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def _remove_segments(run_dir: Path) -> None:
    """Remove what earlier starts recorded; first the file that `wandb sync` looks for."""
    for file in (run_dir / "wandb").glob("*/*.wandb"):
        if not file.parent.is_symlink():  # `latest-run`
            file.unlink()
            # W&B's process of a killed run may still write there.
            shutil.rmtree(file.parent, ignore_errors=True)
