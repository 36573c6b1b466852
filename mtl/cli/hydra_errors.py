"""Put errors of Hydra and OmegaConf, which name their own classes and wrap those of constructors, into words for a user of `mtl train`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtl.base.types import Diverged
from mtl.cli.words import advice
from mtl.run.config import compose
from mtl.run.members import DEFAULTS
from mtl.run.options import nearest

# Errors of the user's; any other is one of the program, and comes with a traceback.
EXPECTED = (HydraException, OmegaConfBaseException, ValueError, OSError, Diverged)
KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a word"}
CONVERSION = re.compile(
    r"Value '(?P<value>.*?)' (?:of type '\w+' )?(?:could not be converted to (?P<kind>\w+)|is not a valid bool)"
)


def explain(error: BaseException, words: Sequence[str], run_dir: Path | None = None) -> str:
    """The message of an error for the user.

    Args:
        error: what ended the command.
        words: of the command line.
        run_dir: the run directory, None where Hydra has not made it yet.
    """
    error = _innermost(error)
    if run_dir is None and (nameless := next((word for word in words if word.startswith("=")), None)):
        return f"options are written NAME=VALUE, got {nameless!r}"
    if isinstance(error, OverrideParseException):
        return str(error) + advice(words)
    if isinstance(error, HydraException | OmegaConfBaseException):  # of which some are OSError or ValueError too
        return _explain_hydra(str(error), words)
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return _explain_file(error, words, run_dir)
    return str(error)


def _innermost(error: BaseException) -> BaseException:
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, ValueError | OSError | HydraException | OmegaConfBaseException):
        return _innermost(cause)
    return error


def _explain_file(error: OSError, words: Sequence[str], run_dir: Path | None) -> str:
    """An error of the run directory, or of a folder above it, is one of `output_dir`; any other names its file."""
    if not error.filename:
        return str(error)
    file = Path(os.fsdecode(error.filename)).absolute()
    if run_dir is None:
        said = [word.partition("=")[2].strip("'\"") for word in words if word.startswith("output_dir=")]
        run_dir = Path(said[-1] if said else "runs")
    out = run_dir.absolute()
    if file == out or out in file.parents or file in out.parents:
        return f"output_dir cannot be used: {error}"
    return str(error)


def _explain_hydra(message: str, words: Sequence[str]) -> str:
    if missing := re.match(r"In '.*?': Could not find '(.+?)/([^/']+)'", message):
        group, name = missing.groups()
        known = sorted(path.removesuffix(".yaml") for path in ConfigStore.instance().list(group))
        return f"{group} must be one of {', '.join(known)}, got {name}{nearest(name, known)}"
    place = re.search(r"full_key: (.+)", message)
    if place is None:
        return _explain_override(message, words)
    if wrong := CONVERSION.search(message):
        return f"{place[1]} must be {KINDS.get(wrong['kind'] or 'Boolean', wrong['kind'])}, got {wrong['value'] or 'nothing'}"
    if "is not Optional" in message:
        return f"{place[1]} must not be null"
    if re.search(r"Key '.*' (?:is )?not in ", message):
        return _unknown(place[1], words)
    return message


def _explain_override(message: str, words: Sequence[str]) -> str:
    unknown = re.match(r"Could not override '([^'@]+)'", message)
    if unknown is None:
        return message
    if unknown[1] == "experiment":
        return next(f"an experiment is added by a plus: +{word}" for word in words if word.startswith("experiment="))
    return _unknown(unknown[1], words)


def _unknown(key: str, words: Sequence[str]) -> str:
    """Name the keys that stand where an unknown one was set."""
    parent, _, name = key.rpartition(".")
    try:
        config = compose([word for word in words if word.partition("=")[0] in (*DEFAULTS, "+experiment") and "," not in word])
    except ConfigCompositionException:
        return f"unknown option {key}"
    node = OmegaConf.select(config, parent) if parent else config
    keys = [str(key) for key in node if not str(key).startswith("_")] if isinstance(node, DictConfig) else []
    near = nearest(name, keys if parent else [*keys, "experiment"])
    listed = f"\n{parent or 'the configuration'} has the keys {', '.join(keys)}" if keys else ""
    return f"unknown option {key}{near}{listed}"
