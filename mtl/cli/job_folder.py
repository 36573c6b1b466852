"""The run directory of a sweep's job, named by what the job computes: `seed=0_loss=hinge-1f0c5be0a7`.

The name has the swept keys and their values, and a hash of what makes the run this run (`mtl.run.identity.identity`). So the same
configuration has the same directory in every sweep of a folder, whatever else is swept, and a new value makes new directories alone.
What is swept and is not in the identity, as `rounds` with a constant rate, `weights` or `engine.backend`, adds a hash of its own.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mtl.base.same_run import REPORTING
from mtl.cli.hydra_errors import EXPECTED
from mtl.run.directory import read_saved
from mtl.run.identity import digest, identity
from mtl.run.rules import check_rules

LONGEST = 80  # letters before the hashes
VALUE = 40  # letters of one value


class Sweep(Callback):
    """What `mtl train -m` lets each job of its sweep know, in whatever process it runs: Hydra carries the words of its callbacks.

    Args:
        keys: what is swept.
        twins: numbers of the jobs that would train the run of an earlier one.
        token: name of the folder of the sweep's records, None where no sweep runs.
        gpus: GPUs of which each process takes one, none where all see all.
    """

    def __init__(
        self, keys: Sequence[str] = (), twins: Sequence[int] = (), token: str | None = None, gpus: Sequence[str] = ()
    ) -> None:
        self.keys, self.twins, self.token, self.gpus = tuple(keys), tuple(twins), token, tuple(gpus)


def task_config(config: DictConfig) -> DictConfig:
    """A copy of a job's configuration without Hydra's own part."""
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.copy_cache(from_config=config, to_config=task)
    OmegaConf.set_struct(task, True)
    return task


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return values


def readable_name(words: Sequence[str], keys: Sequence[str]) -> str:
    """The swept keys and their values, in letters that every disk and shell takes.

    Args:
        words: of the job, KEY=VALUE.
        keys: what is swept; of `client.learning_rate` the name has `learning_rate`, where no other key ends so.
    """
    values = dict(word.split("=", 1) for word in words if "=" in word)
    ends = [key.rpartition(".")[2] for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    names = [name.lstrip("+") for name in names]
    parts = [
        f"{_plain_letters(name)}={_plain_letters(values.get(key, ''))[:VALUE]}" for name, key in zip(names, keys, strict=True)
    ]
    return "_".join(parts)[:LONGEST].rstrip("-_.=")


def _plain_letters(text: str) -> str:
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w.+]+", "-", text).strip("-" if re.fullmatch(r"-[\d.]+", text) is None else "")


def run_hash(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What makes the run this run: of its identity, and of what is swept and is not in that.

    Args:
        config: of the job, plain values.
        keys: what is swept.
    """
    computed, apart = identity(config), _apart(config, keys)
    return _hash(computed)[:10] + (f"-{_hash(apart)[:4]}" if apart else "")


def folder_name(folder: Path, config: Mapping[str, Any], words: Sequence[str], keys: Sequence[str]) -> str:
    """The name of the job's run directory: that of the run of this configuration which `folder` holds, or a new one.

    Args:
        folder: of the sweep.
        config: of the job, plain values.
        words: of the job.
        keys: what is swept.
    """
    hashed, apart = run_hash(config, keys), _apart(config, keys)
    name = "-".join(filter(None, (readable_name(words, keys), hashed)))
    if (folder / name / "config.yaml").exists():
        return name
    for saved in sorted(folder.glob(f"*{hashed.partition('-')[0]}*/config.yaml")):
        before = read_saved(saved)
        same = identity(before) == identity(config) and before.get("rounds") == config.get("rounds")
        if same and all(_at(before, key) == value for key, value in apart.items()):
            return saved.parent.name
    return name


def _apart(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """What is swept and tells jobs apart that have one identity."""
    computed = identity(config)
    return {key: value for key in keys if _is_apart(key, value := _at(config, key), computed)}


def _is_apart(key: str, value: Any, computed: Mapping[str, Any]) -> bool:
    return key.partition(".")[0] not in REPORTING and not isinstance(value, Mapping) and _at(computed, key) != value


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a swept key, `client.learning_rate` or `balancer@server.balancer`, None where there is none."""
    value: Any = config
    for part in key.rpartition("@")[2].split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _hash(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True, default=str).encode())


def _run_folder(*, _root_: DictConfig) -> str:
    """Hydra asks for it in the process of a job, where the sweep was not planned or this is not its process."""
    hydra = _root_.hydra
    task = task_config(_root_)
    try:
        check_rules(task)  # numbers that stand for words become words
    except EXPECTED:
        task = task_config(_root_)  # the job says what is wrong
    keys = list(hydra.callbacks.sweep.get("keys", ()))
    return folder_name(Path(hydra.sweep.dir), plain(task), list(hydra.overrides.task), keys)


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
