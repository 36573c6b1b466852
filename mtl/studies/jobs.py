"""The runs of a study: what each is, where it lies, and the sweeps that train those that are missing.

A run is found by what it computes (`mtl.run.identity`), not by its name, so a folder that was moved or trained by several processes
serves as well. Jobs that differ only in their seed, or in their seed and one option, are one sweep of `mtl train -m`.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtl.run.config import compose
from mtl.run.directory import is_finished, progress, read_saved
from mtl.run.identity import differences, fingerprint, identity
from mtl.run.named_experiments import experiments_folder
from mtl.run.rules import check_rules
from mtl.studies.definition import Definition, StudyRow

DONE = "done"
PLAIN = re.compile(r"([\w./@+]+)=([\w.+-]+)")  # an option with a value that a sweep can list

REPEATED = re.compile(r"\{(\S+) x (\d+)\}")


@dataclass(frozen=True)
class Job:
    """One run of a row.

    Attributes:
        row: its name.
        seed: of the run.
        state: new, interrupted, trained (the command that follows has not been run) or done.
        run_dir: the run directory, None where there is none.
        rounds: of the run.
    """

    row: str
    seed: int
    state: str
    run_dir: Path | None
    rounds: int


@dataclass(frozen=True)
class Source:
    """A run that others start from: its name, words, run directory, and whether it is done."""

    name: str
    words: tuple[str, ...]
    run_dir: Path
    is_done: bool


class Grid:
    """The runs of a study in a folder.

    Args:
        definition: the study.
        folder: of its run directories.
        data: folder of the data.
        quick: whether the runs are those of reduced size.
        more_seeds: runs that each row gets in addition, of the numbers that follow its last seed.
        words: of the user, which must not change what a run computes.
    """

    def __init__(
        self,
        definition: Definition,
        folder: Path,
        *,
        data: str = "data",
        quick: bool = False,
        more_seeds: int = 0,
        words: Sequence[str] = (),
    ) -> None:
        if more_seeds < 0:
            raise ValueError(f"more_seeds must be >= 0, got {more_seeds}")
        self.definition, self.folder, self.user_words = definition, folder, tuple(words)
        kept = definition.quick.seeds if quick else None
        self.rows = tuple(
            replace(row, seeds=(*row.seeds[:kept], *range(max(row.seeds) + 1, max(row.seeds) + 1 + more_seeds)))
            for row in definition.rows
        )
        self._quick = definition.quick.words if quick else ()
        places = {"data": data} | {name: str(self.source_dir(name)) for name in definition.sources}
        self._places = {f"{{{name}}}": value for name, value in places.items()}
        if words:
            self._check_user_words()

    @property
    def run_words(self) -> list[str]:
        """The user's words for a single run, without those for the launcher of a sweep."""
        return [word for word in self.user_words if not word.lstrip("+~").startswith("hydra")]

    def source_dir(self, name: str) -> Path:
        """The run directory of a source."""
        return self.folder / "sources" / name

    def fill(self, words: Sequence[str], run_dir: Path | None = None) -> tuple[str, ...]:
        """`words` with {data}, the names of the sources, {run} and repeated values such as {0 x 40} replaced."""
        places = self._places if run_dir is None else {**self._places, "{run}": str(run_dir)}
        filled = (functools.reduce(lambda word, place: word.replace(*place), places.items(), word) for word in words)
        return tuple(REPEATED.sub(lambda match: ",".join([match[1]] * int(match[2])), word) for word in filled)

    def words_of(self, row: StudyRow) -> tuple[str, ...]:
        """The words of a row's runs but for the seed, without the user's."""
        return self.fill((*row.words, *self._quick))

    def sources(self) -> list[Source]:
        """The sources, in the order of the file."""
        result = []
        for name, words in self.definition.sources.items():
            whole, run_dir = self.fill((*words, *self._quick)), self.source_dir(name)
            result.append(Source(name, whole, run_dir, is_run(run_dir, self.config(whole, 0))))
        return result

    def jobs(self) -> list[Job]:
        """All runs of all rows, in the order of the file."""
        found = self._found()
        return [self._job(row, seed, found) for row in self.rows for seed in row.seeds]

    def config(self, words: Sequence[str], seed: int) -> dict[str, Any]:
        """The configuration of a run, checked.

        Raises:
            ValueError: the words do not go together.
        """
        config = _composed(tuple(words), experiments_folder()).copy()
        config.seed = seed
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        return plain

    def sweeps(self, jobs: Sequence[Job]) -> list[list[str]]:
        """The words of the sweeps that train the jobs which are neither done nor trained."""
        rows = {row.name: row for row in self.rows}
        seeds: dict[tuple[str, ...], list[int]] = {}
        for job in jobs:
            if job.state not in (DONE, "trained"):
                seeds.setdefault(self.words_of(rows[job.row]), [])
                seeds[self.words_of(rows[job.row])] += [job.seed]
        merged: dict[tuple[Any, ...], list[str]] = {}
        for words, numbers in seeds.items():
            place, key, value = _last_plain(words, len(self._quick))
            merged.setdefault((words[:place], key, words[place + 1 :], tuple(dict.fromkeys(numbers))), []).append(value)
        return [
            [
                *before,
                *([f"{key}={','.join(dict.fromkeys(values))}"] if key else []),
                *after,
                f"seed={','.join(map(str, numbers))}",
                f"output_dir={self.folder}",
                *self.user_words,
            ]
            for (before, key, after, numbers), values in merged.items()
        ]

    def _job(self, row: StudyRow, seed: int, found: Mapping[str, list[Path]]) -> Job:
        config = self.config(self.words_of(row), seed)
        places = found.get(fingerprint(config), [])
        run_dir = next((path for path in places if is_run(path, config)), None)
        if run_dir is None:
            near = next((path for path in places if read_saved(path / "config.yaml").get("rounds") == config["rounds"]), None)
            return Job(row.name, seed, "new" if near is None else progress(near, config), near, config["rounds"])
        then = self.definition.then
        state = DONE if then is None or (run_dir / then.makes).exists() else "trained"
        return Job(row.name, seed, state, run_dir, config["rounds"])

    def _found(self) -> dict[str, list[Path]]:
        """The run directories of the folder by what they compute."""
        found: dict[str, list[Path]] = {}
        for place in ("*/config.yaml", "sources/*/config.yaml"):
            for file in sorted(self.folder.glob(place)):
                found.setdefault(fingerprint(read_saved(file)), []).append(file.parent)
        return found

    def _check_user_words(self) -> None:
        words = self.words_of(self.rows[0])
        before, after = (identity(self.config(some, 0)) for some in (words, (*words, *self.run_words)))
        changed = sorted(differences(before, after))
        if changed:
            raise ValueError(
                f"the words of mtl study say how runs are trained, and these change what they compute: {', '.join(changed)}; "
                "for another study copy its file to experiments/studies/NAME.yaml"
            )


def is_run(run_dir: Path, config: Mapping[str, Any]) -> bool:
    """Whether `run_dir` holds the run of `config`, with all its rounds."""
    if not is_finished(run_dir):
        return False
    saved = read_saved(run_dir / "config.yaml")
    return saved.get("rounds") == config.get("rounds") and fingerprint(saved) == fingerprint(config)


def _last_plain(words: tuple[str, ...], num_quick: int) -> tuple[int, str, str]:
    """Place, name and value of the last word of a row that a sweep could list values of; an empty name where there is none."""
    place = len(words) - num_quick - 1
    match = PLAIN.fullmatch(words[place]) if place >= 0 else None
    return (len(words), "", "") if match is None else (place, match[1], match[2])


@functools.lru_cache(maxsize=512)
def _composed(words: tuple[str, ...], experiments: Path | None) -> DictConfig:
    config = compose([*words, "output_dir=runs"], experiments=experiments)
    check_rules(config)
    return config
