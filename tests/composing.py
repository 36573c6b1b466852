"""Configurations for tests: the groups composed once by Hydra, the values put into a copy by the same code of Hydra."""

import copy
import functools
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from mtl.run import config
from mtl.run.members import DEFAULTS


@functools.cache
def _of_groups(words: tuple[str, ...]) -> DictConfig:
    return config.compose(words)


def compose(words: Sequence[str] = ()) -> DictConfig:
    """What `mtl.run.config.compose` gives, in a tenth of its time where the groups were composed before."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    of_group = [
        override.package is not None or (override.key_or_group in (*DEFAULTS, "experiment") and isinstance(override.value(), str))
        for override in parsed
    ]
    composed = copy.deepcopy(_of_groups(tuple(word for word, group in zip(words, of_group, strict=True) if group)))
    ConfigLoaderImpl._apply_overrides_to_config(
        [word for word, group in zip(parsed, of_group, strict=True) if not group], composed
    )
    return composed
