"""Lists that a user may have written: UTF-8 with or without a byte order mark, with any line ends."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

log = logging.getLogger(__name__)


def read_lines(file: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: where it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8, got {error.object[error.start]:#04x} at byte {error.start}") from error


def check_matches(list_file: Path, files: Sequence[str], listed: Collection[str], example: str) -> None:
    """Warn where some of the files have no line in a list.

    Args:
        list_file: the list.
        files: names of the files, at least one.
        listed: names in the list.
        example: a line of the list.

    Raises:
        ValueError: where no file has a line.
    """
    missing = [file for file in files if file not in listed]
    if len(missing) == len(files):
        raise ValueError(
            f"{list_file} must have lines for the pictures, named as the files are, letter case too; got none for {len(files)} of them: "
            f"the first picture is {missing[0]!r}, a line is {example!r}"
        )
    if missing:
        log.warning("%s has no line for %d of %d pictures, the first %s", list_file, len(missing), len(files), missing[0])
