"""Shared by the commands: paths as users type them, errors, and tables as wide as the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def path(word: str) -> Path:
    """The path that `word` names; `~` stands for the home folder, which a shell leaves behind an equals sign and in quotes."""
    return Path(word).expanduser()


def fail(message: str, code: int = 2) -> int:
    """Print an error and return the exit code."""
    print(f"mtl: error: {message}", file=sys.stderr)
    return code


def message_of(error: BaseException, message: str = "") -> str:
    """What to print of an error: its message and its notes.

    Args:
        error: the error.
        message: printed in place of the error's message, unless empty.
    """
    return "; ".join([message or str(error), *getattr(error, "__notes__", ())])


def console() -> "Console":
    """A console for tables: as wide as the terminal, and 150 columns in a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 150)
