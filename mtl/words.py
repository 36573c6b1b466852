"""The words of a command line as people type them, made into words that Hydra's grammar takes."""

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

MARKS = "[{('\""  # what Hydra's own notation begins with


def readable(words: Sequence[str], *, sweep: bool = False) -> list[str]:
    """`words` with a home for every `~`, and quotes where Hydra would stop at a letter: `data.root=~/Été` is a path, as it stands.

    sweep: commas are between values.
    """
    return [_readable(word, sweep) for word in words]


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
    quoted = ",".join(_quoted(_home(part)) for part in parts)
    return f"{name}={quoted}" if _parses(f"{name}={quoted}") else word


def _home(value: str) -> str:
    # pathlib would also tidy a value that is no path, and fail where there is no home.
    return os.path.expanduser(value)  # noqa: PTH111


def _quoted(value: str) -> str:
    # A backslash before a quote, or at the end, would belong to the quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True
