"""Files that are either whole or not there."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, and not in every build of PyYAML


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` into an error of the disk that does not name a file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a binary file that replaces `path` when the block ends well; a killed process or a full disk leaves the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as sorted, indented JSON; NaN and infinity are refused."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_yaml(path: Path) -> Any:
    """Read a YAML file; raises `yaml.YAMLError` or UnicodeDecodeError where it is damaged."""
    return yaml.load(path.read_text(encoding="utf-8"), YAML_LOADER)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write named arrays as one compressed `.npz` file."""
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)
