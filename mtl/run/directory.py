"""The directory of a run: to which run it belongs, which process works in it, and whether a later start is the same run.

Two configurations are the same run where they compute the same numbers, up to rounding. So options that only say where a run writes and
what it reports are left out of the comparison (`REPORTING`), as are the machine and the engine (`ROUNDING`). Files are compared by their
content, in the fingerprints of the checkpoint, and not by their path (`FILES`). The number of rounds counts only where something depends
on it (`needs_rounds`).
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mtl.base.files import atomic_write, naming

logger = logging.getLogger(__name__)
LOCK = ".lock"
REPORTING = ("output_dir", "resume", "name", "objective", "tracking", "write_report", "checkpoint_every", "profile")
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
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Make `run_dir` and lock it against other processes until the context or this process ends.

    Raises:
        ValueError: another process works there, the folder has content that is not a run's, or its name is not UTF-8.
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"output_dir {run_dir} is in use by {holder}; wait for it, or choose another output_dir") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s has no locks (%s): nothing keeps a second process out of it", run_dir, error)
        with naming(run_dir / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


def open_run_directory(run_dir: Path, config: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Start a run in `run_dir`, or check that it holds this run.

    A run that failed before its first round was saved or logged is replaced. Otherwise nothing of another run is overwritten.

    Args:
        run_dir: the folder.
        config: plain nested values.
        resume: whether to continue a run that is there.

    Returns:
        The checkpoint to continue from, None to start from the beginning.

    Raises:
        ValueError: the folder holds other files, a run of another configuration, or this run and `resume` is false.
    """
    saved = run_dir / "config.yaml"
    if saved.exists():
        before = _read_config(saved)
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
                f"output_dir {run_dir} holds this run already; use resume=true to continue it, or another output_dir"
            )
        return checkpoint if checkpoint.exists() else None
    _refuse_foreign(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_config(saved, config)
    return None


def update_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of a resumed run, and log what changed: machine, engine, paths of files, or number of rounds."""
    saved = run_dir / "config.yaml"
    before = _read_config(saved)
    updated = dict(config) | {key: before[key] for key in REPORTING if key in before}
    differing = sorted(_differences(before, updated))
    if differing:
        logger.info(
            "resumed with another %s: the numbers of a round change by rounding at most",
            ", ".join(differing),
        )
        _write_config(saved, updated)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that two configurations of the same run must share; see the module."""
    plain = {key: value for key, value in config.items() if key not in REPORTING}
    for place, names in ROUNDING.items():
        plain = _without(plain, place, names)
    for place, names in FILES.items():
        options = plain if not place else plain.get(place)
        paths = tuple(name for name in names if isinstance(options, Mapping) and isinstance(options.get(name), str))
        plain = _without(plain, place, paths)
    plain = _without_roots(plain)
    if not needs_rounds(config):
        plain.pop("rounds", None)
    return plain


def needs_rounds(config: Mapping[str, Any]) -> list[str]:
    """Return the options that make a round depend on the number of rounds."""

    def option(group: str, name: str, default: Any = None) -> Any:
        options = config.get(group)
        return options.get(name, default) if isinstance(options, Mapping) else default

    reasons = []
    if (shape := option("schedule", "shape")) != "constant":
        reasons.append(f"schedule={shape}")
    if option("prune", "kind", "nothing") == "weights":
        reasons.append("prune=weights")
    if any(value is not None for value in _values_of("defer", config.get("loss"))):
        reasons.append("loss.defer")
    if None in list(_values_of("warmup", config.get("balancer"))):
        reasons.append("balancer.warmup=null")
    varying = option("sampling", "cohort") is not None or option("sampling", "dropout", 0) or option("fleet", "mix") is not None
    if config.get("mode", "federated") in ("centralised", "detection", "single_task") and varying:
        reasons.append(f"mode={config['mode']}, which makes as many steps as the clients that come back in all rounds,")
    return reasons


def fingerprint(config: Mapping[str, Any], *data: bytes | memoryview) -> str:
    """Return the digest of a configuration's identity and of the data, which a run and its checkpoints share."""
    return digest(json.dumps(identity(config), sort_keys=True, default=str).encode(), *data)


def digest(*parts: bytes | memoryview) -> str:
    """Return the BLAKE2 digest of the parts in hexadecimal."""
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
    names = sorted(path.name for path in run_dir.iterdir() if path.name != LOCK)
    if names:
        raise ValueError(f"output_dir {run_dir} must be a new, an empty or a run's folder, and it holds {', '.join(names[:3])}")


def _has_rounds(metrics: Path) -> bool:
    return metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) > 1


def _read_config(path: Path) -> dict[str, Any]:
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
    """`config` without some options of the group `place`, or of the top where it is empty."""
    if not place:
        return {key: value for key, value in config.items() if key not in names}
    options = config.get(place)
    return config | {place: _without(dict(options), "", names)} if isinstance(options, Mapping) else config


def _without_roots(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without the folders of data; the images are in the fingerprint."""
    rest = {key: value for key, value in config.items() if key != "root" or not isinstance(value, str)}
    return {key: _without_roots(value) if isinstance(value, Mapping) else value for key, value in rest.items()}


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
