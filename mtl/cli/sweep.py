"""A sweep before its first job: every job composed, checked, and looked up in the sweep's folder."""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.table import Table
from rich.text import Text

from mtl.cli.hydra_errors import EXPECTED, explain
from mtl.cli.job_folder import folder_name, plain, run_hash, task_config
from mtl.cli.terminal import console
from mtl.cli.words import check_booleans, quote, readable
from mtl.run.config import CONFIG_NAME, hydra_with_groups
from mtl.run.directory import ERROR, progress
from mtl.run.experiment_keys import member_words
from mtl.run.named_experiments import experiments_folder
from mtl.run.rules import check_rules

MODE = "hydra.mode=MULTIRUN"
MANY = 500  # jobs that start without --yes
SHOWN = 10  # invalid jobs that are named


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        number: in the sweep.
        words: the swept keys with their values.
        run_dir: where its run lies, or will.
        hashed: what makes it this run.
        state: new, interrupted or done.
        config: of the run.
        overrides: what makes it.
        composed: the same with Hydra's own part.
    """

    number: int
    words: str
    run_dir: Path
    hashed: str
    state: str
    config: DictConfig
    overrides: tuple[str, ...]
    composed: DictConfig


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        folder: its run directories are in it.
        jobs: all of them, None where a sweeper chooses them as it goes.
        token: name of this sweep.
        in_process: whether the jobs run in this process.
        user_words: the command's, with the folder.
        words: these, with what every job is to know of the sweep.
        write_report: whether a report of all its runs is written at its end.
    """

    folder: Path
    jobs: tuple[Job, ...] | None
    token: str
    in_process: bool
    user_words: list[str]
    words: list[str]
    write_report: bool = False


def make_plan(words: Sequence[str], *, many: bool = False) -> Plan:
    """Compose and check every job of a sweep; makes no folder.

    Args:
        words: of the command line, without flags.
        many: whether there may be more than 500 jobs.

    Raises:
        ValueError: a job is invalid, there are too many, or `output_dir` is swept.
    """
    with hydra_with_groups(experiments_folder()) as hydra:
        return _make_plan(hydra, list(words), many)


def _make_plan(hydra: Hydra, words: list[str], many: bool) -> Plan:
    added = member_words(words)
    master = hydra.compose_config(CONFIG_NAME, [*words, MODE, *added], RunMode.MULTIRUN, with_log_configuration=False)
    params = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
    arguments = [*params, *OmegaConf.to_container(master.hydra.overrides.task)]  # type: ignore[misc]
    sizes = _sizes(arguments)
    keys = [key for key, size in sizes.items() if size is not None]
    if "output_dir" in keys:
        raise ValueError("output_dir is the folder of the sweep, and takes one value")
    HydraConfig.instance().set_config(master)
    folder = Path(master.hydra.sweep.dir)
    token = f"sweep-{secrets.token_hex(4)}"
    user_words = [*_without_folder(words), _folder_word(folder)]
    known = [MODE, f"hydra.callbacks.sweep.keys=[{','.join(map(quote, keys))}]", f"hydra.callbacks.sweep.token={token}"]
    jobs = None
    if str(master.hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}"):
        count = math.prod(size or 1 for size in sizes.values())
        if count > MANY and not many:
            raise ValueError(f"the sweep has {count} jobs: more than {MANY} need --yes, and -m --dry-run --yes lists them")
        with read_write(master.hydra.overrides.hydra):
            master.hydra.overrides.hydra.extend(known)
        jobs = _jobs(hydra.config_loader, master, [*_without_folder(arguments), user_words[-1]], keys)
        twins = [str(number) for number, first in _twins(jobs).items() if number != first]
        known.append(f"hydra.callbacks.sweep.twins=[{','.join(twins)}]")
    in_process = str(master.hydra.launcher._target_).endswith(".BasicLauncher")
    words = [*user_words, *known, *added]
    return Plan(folder, jobs, token, in_process, user_words, words, master.write_report == "auto")


def _twins(jobs: Sequence[Job]) -> dict[int, int]:
    """By number of a job, the first job that has the same run."""
    first: dict[str, int] = {}
    return {job.number: first.setdefault(job.hashed, job.number) for job in jobs}


def _sizes(arguments: Sequence[str]) -> dict[str, int | None]:
    """The number of values by key, None for one that is not swept, 0 where it is a range of real numbers."""
    sizes: dict[str, int | None] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        swept = override.is_sweep_override()
        count = len(list(override.sweep_string_iterator())) if swept and override.is_discrete_sweep() else 0
        sizes[override.get_key_element()] = count if swept else None
    return sizes


def _without_folder(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.startswith("output_dir=")]


def _folder_word(folder: Path) -> str:
    word = f"output_dir={quote(str(folder))}" if "," in str(folder) else f"output_dir={folder}"
    return readable([word])[0]


def _jobs(loader: ConfigLoader, master: DictConfig, arguments: list[str], keys: list[str]) -> tuple[Job, ...]:
    """All jobs. Raises ValueError with the words of those that are invalid."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    jobs, problems = [], []
    for number, overrides in enumerate(BasicSweeper.split_arguments(parsed, None)[0]):
        words = " ".join(word for word in overrides if word.partition("=")[0] in keys)
        try:
            jobs.append(_job(loader, master, number, overrides, words))
        except EXPECTED as error:
            problems.append(f"  job {number} ({words}): {explain(error, overrides)}")
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        total = len(jobs) + len(problems)
        shown = "\n".join(problems[:SHOWN])
        raise ValueError(f"{len(problems)} of the sweep's {total} jobs cannot run, and none was started:\n{shown}{more}")
    return tuple(jobs)


def _job(loader: ConfigLoader, master: DictConfig, number: int, overrides: list[str], words: str) -> Job:
    config = loader.load_sweep_config(master, overrides)
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = str(number)
    HydraConfig.instance().set_config(config)
    task = task_config(config)
    check_booleans(overrides, task)
    check_rules(task)
    values, keys = plain(task), list(config.hydra.callbacks.sweep["keys"])
    hashed = run_hash(values, keys)
    folder = Path(os.path.abspath(config.hydra.sweep.dir))  # noqa: PTH100 as Hydra does it
    run_dir = folder / folder_name(folder, values, list(config.hydra.overrides.task), keys)
    return Job(number, words, run_dir, hashed, progress(run_dir, values), task, tuple(overrides), config)


def show_configs(jobs: Sequence[Job], *, resolve: bool) -> None:
    """Print the configuration of every job, as documents of one YAML stream."""
    for job in jobs:
        print(f"---\n# job {job.number}: {job.words}")
        print(OmegaConf.to_yaml(job.config, resolve=resolve), end="")


def show_plan(plan: Plan) -> None:
    """Print the jobs, and how long they will take as far as runs of the folder tell."""
    if plan.jobs is None:
        print(f"the sweeper chooses its jobs as it goes; their run directories will be in {plan.folder}")
        return
    table = Table("job", "run directory", "state", title=f"sweep in {plan.folder}", title_justify="left")
    twins = _twins(plan.jobs)
    for job in plan.jobs:
        failed = " (failed before)" if job.state != "done" and (job.run_dir / ERROR).exists() else ""
        twin = f"the run of job {twins[job.number]}" if twins[job.number] != job.number else ""
        table.add_row(str(job.number), Text(job.run_dir.name), twin or f"{job.state}{failed}")
    console().print(table)
    states = [job.state for job in plan.jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "interrupted", "new") if state in states)
    print(f"{len(states)} job{'s'[: len(states) != 1]}: {counts}; {_estimate(plan.folder, plan.jobs)}")


def _estimate(folder: Path, jobs: Sequence[Job]) -> str:
    """How long the jobs take that are not done, by the mean seconds of a round in the finished runs of the folder."""
    rates = []
    for file in folder.glob("*/summary.json"):
        with contextlib.suppress(json.JSONDecodeError, KeyError):
            summary = json.loads(file.read_text(encoding="utf-8"))
            rates.append(float(summary["fit/seconds"]) / float(summary["fit/rounds"]))
    left = {job.hashed: job.config.rounds - _rounds_done(job.run_dir) for job in jobs if job.state != "done"}
    if not left:
        return "nothing is left to train"
    if not rates:
        return "no run has finished by which the time could be estimated"
    seconds = sum(left.values()) * sum(rates) / len(rates)
    took = (
        f"{max(seconds, 1):.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    return f"about {took} of training, one job after the other, as fast as the {len(rates)} finished run{'s'[: len(rates) != 1]}"


def _rounds_done(run_dir: Path) -> int:
    """The last round of an interrupted run's `metrics.csv`."""
    metrics = run_dir / "metrics.csv"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return max((int(number) for line in lines if (number := line.partition(",")[0]).isdigit()), default=0)
