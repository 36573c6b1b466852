"""Turn the words of a command line, as people type them, into words that Hydra's grammar takes."""

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mtl.run.experiment_keys import experiment_values
from mtl.run.options import nearest

SWEEPS = ("-m", "--multirun")
GPU_PER_JOB = "--gpu-per-job"
SWEEP_FLAGS = ("--dry-run", "--yes", GPU_PER_JOB)  # of a sweep, which Hydra does not know
# Flags that mean something for `mtl train`: without a value, and with one of these (None: any).
PLAIN = (*SWEEPS, *SWEEP_FLAGS, "-r", "--run", "--resolve", "--hydra-help")
VALUED: dict[str, tuple[str, ...] | None] = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": None,
}
SHORT = {"-c": "--cfg", "-i": "--info", "-p": "--package"}
_PLACE = (
    "the configuration is mtl's own and takes no {}; options are written NAME=VALUE, several of them in experiments/NAME.yaml"
)
REFUSED = {
    **dict.fromkeys(("--config-path", "-cp", "--config-dir", "-cd"), _PLACE.format("other folder")),
    **dict.fromkeys(("--config-name", "-cn"), _PLACE.format("other name")),
    **dict.fromkeys(("--shell-completion", "-sc"), "mtl has no completion of words in a shell; mtl train --help lists the words"),
    "--experimental-rerun": "mtl writes no configuration to rerun from; resume=true output_dir=RUN continues a run",
    "--version": "mtl train has no version of its own; mtl --version prints that of mtl",
}
MARKS = "[{('\""  # what Hydra's own notation begins with


def readable(words: Sequence[str], *, sweep: bool = False) -> list[str]:
    """Replace `~` by the home folder, and add quotes where Hydra would stop at a letter: `data.root=~/Été` is a path, as it stands.

    Args:
        words: of a command line.
        sweep: whether commas stand between values.
    """
    return [_readable(word, sweep) for word in words]


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part Hydra's flags from the other words; a user may write flags anywhere.

    Args:
        words: of a command line.

    Returns:
        The flags with their values, and the other words in their order.

    Raises:
        ValueError: a flag is unknown, refused, or lacks its value or another flag.
    """
    flags: dict[str, list[str]] = {}
    others, left = [], iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if not word.startswith("-"):
            others.append(word)
        elif word in PLAIN:
            flags[word] = [word]
        elif name in VALUED:
            flags[name] = [name, _flag_value(name, value if equals else next(left, ""))]
        elif name in REFUSED:
            raise ValueError(f"{name} is refused: {REFUSED[name]}")
        else:
            hint = advice([word]) if equals else nearest(name, (*PLAIN, *VALUED, "--help"))
            raise ValueError(f"unknown option {word}{hint}")
    sweep = next((flag for flag in SWEEPS if flag in flags), None)
    if sweep and flags.get("--cfg", ["job"])[-1] != "job":
        raise ValueError(f"of a sweep, --cfg job prints the configurations: write --cfg job, or leave out {sweep}")
    for flag in SWEEP_FLAGS:
        if flag in flags and not sweep:
            raise ValueError(f"{flag} belongs to a sweep: write -m {flag}")
    for flag in ("--resolve", "--package"):
        if flag in flags and "--cfg" not in flags:
            raise ValueError(f"{flag} belongs to --cfg: write --cfg job {flag}")
    return [part for parts in flags.values() for part in parts], others


def _flag_value(name: str, value: str) -> str:
    choices = VALUED[name]
    if not value or (choices is not None and value not in choices):
        expected = "a value" if choices is None else f"one of {', '.join(choices)}"
        raise ValueError(f"{name} needs {expected}, got {value or 'none'}")
    return value


def check_booleans(words: Sequence[str], config: DictConfig) -> None:
    """Check that options of two values were set to true or false: OmegaConf also takes numbers, and words like yes and on.

    Args:
        words: the overrides of one run; what the experiments set that they name is checked too.
        config: the configuration that they made.

    Raises:
        ValueError: an option that is true or false has another value.
    """
    overrides = OverridesParser.create().parse_overrides(list(words))
    said = [(part.key_or_group, part.value()) for part in overrides if not part.is_delete() and part.package is None]
    for key, value in (*said, *experiment_values(words)):
        is_boolean = str(value).lower() in ("true", "false") or "${" in str(value)
        if not is_boolean and isinstance(OmegaConf.select(config, key), bool):
            raise ValueError(f"{key} must be true or false, got {value}")


def advice(words: Sequence[str]) -> str:
    """How to write the first of `words` that Hydra cannot read."""
    for word in words:
        name, equals, value = word.partition("=")
        bare = word.lstrip("-")
        if word.startswith("--") and equals:
            return f"\noptions are written without dashes: {bare}"
        if not equals and not word.startswith(("-", "~")):
            return f"\noptions are written NAME=VALUE, got {word!r}"
        if equals and name and not _parses(word):
            return f"\na value with odd letters is written in two pairs of quotes: {name}='\"{value}\"'"
    return ""


def _readable(word: str, sweep: bool) -> str:
    name, equals, value = word.partition("=")
    if not equals or not name or name.startswith("-"):
        return word
    if value[:1] in ("'", '"') and value[1:2] == "~":
        value = value[0] + _home(value[1:])
    parts = value.split(",") if sweep and value[:1] not in MARKS else [value]
    whole = ",".join(_home(part) for part in parts)
    if _parses(f"{name}={whole}"):
        return f"{name}={whole}"
    if value[:1] in MARKS[:2] or value[:1] in MARKS[3:]:
        return word  # meant for Hydra, which says what is wrong
    quoted = ",".join(quote(_home(part)) for part in parts)
    return f"{name}={quoted}" if _parses(f"{name}={quoted}") else word


def _home(value: str) -> str:
    # pathlib would also tidy a value that is no path, and fail where there is no home.
    return os.path.expanduser(value)  # noqa: PTH111


def quote(value: str) -> str:
    """The value in quotes, as Hydra reads it."""
    # A backslash before a quote, or at the end, would belong to the quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True
