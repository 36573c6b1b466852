"""The configuration of a run: composed from groups, defaults, named experiments and what the user sets, by Hydra."""

import contextlib
import functools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra_zen import ZenStore, builds
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mtl.run.experiment_keys import join_experiments, member_words, split_experiment
from mtl.run.members import DEFAULTS, PARTIAL, WHOLE
from mtl.run.named_experiments import experiment_files
from mtl.run.options import convert, nearest
from mtl.run.settings import OPTIONS, top_level, top_level_keys

CONFIG_NAME = "train"
# Makes the names of runs unique that start in the same second, as an array of jobs does.
OmegaConf.register_new_resolver("token", lambda: secrets.token_hex(4), use_cache=True, replace=True)


@functools.cache
def register(experiments: Path | None = None) -> Mapping[str, str]:
    """Fill Hydra's store with the groups, the defaults and the named experiments.

    Args:
        experiments: a folder of YAML files of the user, in addition to those of the package.

    Returns:
        By name, the errors of experiments that cannot be read.
    """
    named = join_experiments()
    # Hydra copies its sources for every configuration. The store, which it does not change, is by far the largest part of them.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    store = ZenStore("mtl", overwrite_ok=True)
    for groups, partial in ((WHOLE, False), (PARTIAL, True)):
        for group, members in groups.items():
            for name, member in members.items():
                target, changed = member if isinstance(member, tuple) else (member, {})
                config: Any = builds(target, populate_full_signature=True, zen_partial=partial, hydra_convert="all", **changed)
                store(config, group=group, name=name)
    store(top_level(), name=CONFIG_NAME)
    store.add_to_hydra_store(overwrite_ok=True)
    broken = {}
    for name, path in experiment_files(experiments).items():
        try:
            ConfigStore.instance().store(group="experiment", name=name, node=_read_experiment(path), package="_global_")
        except (ValueError, OSError) as error:
            broken[name] = f"{path} cannot be used: {error}"
    for name in named:
        split_experiment(name)
    return broken


def _read_experiment(path: Path) -> DictConfig:
    try:
        node = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(node, DictConfig):
        raise ValueError("it must hold options by name")
    return node


# Keys at the top that hold a word or null, which Hydra does not check.
WORDS = ("weights", "best_by", "objective", "start", "name")


def check_name(key: str) -> None:
    """Raise ValueError where the configuration has no key of this name at the top."""
    keys = top_level_keys()
    if key not in keys:
        hint = nearest(key, [*keys, "experiment"])
        raise ValueError(f"unknown option {key}{hint}; the configuration has the keys {', '.join(keys)}")


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for an unknown key at the top or a value of a wrong type; a number is a word where one is expected."""
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    for key in map(str, config):
        check_name(key)
        if key in DEFAULTS or key in OPTIONS:
            if not isinstance(config[key], DictConfig):
                raise ValueError(f"{key} must be a group of options, got {config[key]}")
        elif key in WORDS:
            config[key] = convert(plain[key], str | None, key)


@contextlib.contextmanager
def hydra_with_groups(experiments: Path | None = None) -> Iterator[Hydra]:
    """Give a Hydra that knows the groups, the defaults and the named experiments. A program that uses Hydra itself keeps its own.

    Args:
        experiments: a folder of named experiments, in addition to those of the package.
    """
    register(experiments)
    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    config = HydraConfig.instance().cfg
    try:
        with initialize(version_base="1.3", config_path=None, job_name=CONFIG_NAME):
            hydra: Any = GlobalHydra.instance().hydra
            yield hydra
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = before, config


def compose(overrides: Sequence[str] = (), *, experiments: Path | None = None) -> DictConfig:
    """Compose the configuration that `mtl train OVERRIDES` runs with.

    Args:
        overrides: words of the command line.
        experiments: a folder of named experiments, in addition to those of the package.
    """
    with hydra_with_groups(experiments) as hydra:
        config = hydra.compose_config(CONFIG_NAME, [*overrides, *member_words(overrides)], RunMode.RUN, from_shell=False)
    with open_dict(config):
        del config["hydra"]
    return config
