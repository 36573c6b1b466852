"""The directory of a run: whose it is, who works in it, and what makes a later start the same run.

Two configurations are the same run where they compute the same numbers, to rounding. Where a run writes and how it is watched is not part
of that, nor are the machine and the engine (`ROUNDING`); files are compared by what they hold, in the fingerprints of the checkpoint, and
not by where they lie (`FILES`); and the number of rounds counts only where something depends on it (`needs_rounds`).
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from mtl.base.files import atomic_write, naming

logger = logging.getLogger(__name__)
LOCK = ".lock"
LOG, ERROR = "log.txt", "error.txt"  # what was logged; why the run failed, as long as it has not succeeded
OWN = (LOCK, LOG, ERROR)  # what a start that failed leaves behind
WATCHING = ("output_dir", "resume", "name", "tracking", "write_report", "checkpoint_every", "profile")
ROUNDING: dict[str, tuple[str, ...]] = {
    "trainer": ("accelerator", "devices", "num_nodes", "threads"),
    "engine": ("backend", "compile", "block", "bank_memory"),
}
FILES: dict[str, tuple[str, ...]] = {
    "": ("weights", "start"),
    "distil": ("teacher",),
    "transfer": ("source",),
    "fleet": ("profiles",),
}
PATIENCE = 5  # times that a lock is tried, .02 s apart: `holder` takes it for an instant
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class InUse(ValueError):
    """Another process works in the run directory."""


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keep every other process out of `run_dir`, which is made, while the context or this process lasts.

    Raises:
        InUse: Another process works there.
        ValueError: The folder is not a new, an empty or a run's, or its name is not UTF-8, as that of every file that says where it is.
    """
    try:
        str(run_dir).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"output_dir must be a name in UTF-8, got {os.fsencode(run_dir)!r}") from error
    _refuse_foreign(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # has no flock
        yield
        return
    import fcntl

    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            for _ in range(PATIENCE):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.02)
            else:
                raise InUse(f"output_dir {run_dir} is in use by {_holder(file)}; wait for it, or say another output_dir")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s has no locks (%s): nothing keeps a second process out of it", run_dir, error)
        with naming(run_dir / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


def holder(run_dir: Path) -> str | None:
    """The process that works in `run_dir`, None where none does or the disk has no locks."""
    lock = run_dir / LOCK
    if sys.platform == "win32" or not lock.exists():
        return None
    import fcntl

    with lock.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(file)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    return None


def _holder(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip() or "another process"


def progress(run_dir: Path, config: Mapping[str, Any]) -> str:
    """How far the run of `config` is in `run_dir`: new, interrupted (a resume goes on with it) or done.

    Raises:
        ValueError: `config.yaml` there is damaged.
    """
    if not (run_dir / "config.yaml").exists():
        return "new"
    if _counted(read_saved(run_dir / "config.yaml")) == _counted(config) and is_finished(run_dir):
        return "done"
    saved = (run_dir / "checkpoints" / "last.ckpt").exists()
    return "interrupted" if saved or _has_rounds(run_dir / "metrics.csv") else "new"


def is_finished(run_dir: Path) -> bool:
    """Whether all rounds of the run in `run_dir` are done and tested. Rounds that were added since make it unfinished."""
    config, summary = run_dir / "config.yaml", run_dir / "summary.json"
    if not config.exists() or not summary.exists():
        return False
    return bool(json.loads(summary.read_text(encoding="utf-8")).get("fit/rounds") == read_saved(config).get("rounds"))


def open_run_directory(run_dir: Path, config: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Make `run_dir` a run's home, or check that it is this run's; returns the checkpoint to go on from, None to start anew.

    Nothing is written where the folder holds anything else: another run, another configuration, other files. A start that failed before
    its first round was saved or logged left nothing worth keeping: the next start takes its place.
    """
    saved = run_dir / "config.yaml"
    if saved.exists():
        before = read_saved(saved)
        checkpoint = run_dir / "checkpoints" / "last.ckpt"
        if not checkpoint.exists() and not _has_rounds(run_dir / "metrics.csv"):
            _write_config(saved, config)
            return None
        differing = sorted(_differences(identity(before), identity(config)))
        if differing:
            raise ValueError(
                f"output_dir {run_dir} holds a run of another configuration, which differs in {', '.join(differing)}"
                + _why_rounds(differing, config)
            )
        if not resume:
            raise ValueError(
                f"output_dir {run_dir} holds this run already; say resume=true to go on with it, or another output_dir"
            )
        return checkpoint if checkpoint.exists() else None
    _refuse_foreign(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_config(saved, config)
    return None


def update_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Keep what a resumed run now differs by: its machine, its engine, its files, its number of rounds. Says in the log what it is."""
    saved = run_dir / "config.yaml"
    before = read_saved(saved)
    now = dict(config) | {key: before[key] for key in WATCHING if key in before}
    differing = sorted(_differences(before, now))
    if differing:
        logger.info("resumed with another %s: beyond the rounds to come, it changes nothing but rounding", ", ".join(differing))
        _write_config(saved, now)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration makes a run this run; see above."""
    plain = _counted(config)
    for place, names in FILES.items():
        of = plain if not place else plain.get(place)
        paths = tuple(name for name in names if isinstance(of, Mapping) and isinstance(of.get(name), str))
        plain = _without(plain, place, paths)
    plain = _without_roots(plain)
    if not needs_rounds(config):
        plain.pop("rounds", None)
    return plain


def _counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what never makes another run; with its files, its folders of data and its number of rounds."""
    plain = {key: value for key, value in config.items() if key not in WATCHING}
    for place, names in ROUNDING.items():
        plain = _without(plain, place, names)
    return plain


def needs_rounds(config: Mapping[str, Any]) -> list[str]:
    """What of a configuration makes a round depend on how many there are."""

    def of(group: str, name: str, default: Any = None) -> Any:
        options = config.get(group)
        return options.get(name, default) if isinstance(options, Mapping) else default

    reasons = []
    if (shape := of("schedule", "shape")) != "constant":
        reasons.append(f"schedule={shape}")
    if of("prune", "kind", "nothing") == "weights":
        reasons.append("prune=weights")
    if any(value is not None for value in _values_of("defer", config.get("loss"))):
        reasons.append("loss.defer")
    if None in list(_values_of("warmup", config.get("balancer"))):
        reasons.append("balancer.warmup=null")
    varying = of("sampling", "cohort") is not None or of("sampling", "dropout", 0) or of("fleet", "mix") is not None
    if config.get("mode", "federated") in ("centralised", "detection", "single_task") and varying:
        reasons.append(f"mode={config['mode']}, which makes as many steps as the clients that come back in all rounds,")
    return reasons


def fingerprint(config: Mapping[str, Any], *data: bytes | memoryview) -> str:
    """What a checkpoint must share with a run to be its own: the identity of the configuration, and the data."""
    return digest(json.dumps(identity(config), sort_keys=True, default=str).encode(), *data)


def digest(*parts: bytes | memoryview) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def _why_rounds(differing: list[str], config: Mapping[str, Any]) -> str:
    if not any(place.startswith("rounds (") for place in differing):
        return ""
    reasons = needs_rounds(config)
    return f"; rounds can grow only where nothing depends on their number, and {' and '.join(reasons)} does" if reasons else ""


def _refuse_foreign(run_dir: Path) -> None:
    if not run_dir.exists() or (run_dir / "config.yaml").exists():
        return
    found = sorted(path.name for path in run_dir.iterdir() if path.name not in OWN)
    if found:
        raise ValueError(f"output_dir {run_dir} must be a new, an empty or a run's folder, and it holds {', '.join(found[:3])}")


def _has_rounds(metrics: Path) -> bool:
    return metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) > 1


def read_saved(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: expected the configuration of a run; use another output_dir")
    return config


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(dict(config), sort_keys=False).encode())


def _without(config: dict[str, Any], place: str, names: tuple[str, ...]) -> dict[str, Any]:
    """config, without some options of one of its groups, or of itself."""
    if not place:
        return {key: value for key, value in config.items() if key not in names}
    options = config.get(place)
    return config | {place: _without(dict(options), "", names)} if isinstance(options, Mapping) else config


def _without_roots(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the folders of data, whose images are in the fingerprint."""
    kept = {key: value for key, value in config.items() if key != "root" or not isinstance(value, str)}
    return {key: _without_roots(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _values_of(name: str, value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key == name:
                yield part
            else:
                yield from _values_of(name, part)


def _differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in {**left, **right}:
            yield from _differences(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
    elif left != right:
        yield f"{path} ({left} there, {right} now)"
