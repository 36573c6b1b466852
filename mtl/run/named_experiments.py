"""The named experiments: YAML files of the package and of the working folder, each with a first comment that describes it."""

import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "experiments"


def experiments_folder() -> Path | None:
    """Return the folder `experiments/` of the working folder, None where there is none."""
    folder = Path.cwd() / "experiments"
    return folder if folder.is_dir() else None


def experiment_files(folder: Path | None) -> dict[str, Path]:
    """Return the file of each experiment by name; those of `folder` replace those of the package with the same name."""
    folders = (FOLDER,) if folder is None else (FOLDER, folder)
    return {path.stem: path for place in folders for path in sorted(place.glob("*.yaml"))}


def describe(path: Path) -> str:
    """Return the first comment line of an experiment's file; empty where the file does not begin with a comment."""
    if not path.is_file():
        return ""
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    first = next((line for line in lines if line), "")
    return first.lstrip("#").strip() if first.startswith("#") else ""


def listing(files: Mapping[str, Path]) -> str:
    """Return a list of the experiments with a line each."""
    width = max(map(len, files)) + 2
    lines = ["mtl train +experiment=NAME [KEY=VALUE] ... runs one of these; mtl experiments NAME prints its file.", ""]
    for name, path in files.items():
        lines += textwrap.wrap(
            describe(path) or f"(no comment at the top of {path.name})",
            140,
            initial_indent=f"  {name:<{width}}",
            subsequent_indent=" " * (width + 2),
        )
    return "\n".join(lines) + "\n"


def named_file(files: Mapping[str, Path], name: str) -> Path:
    """Return the file of an experiment; raises ValueError for an unknown name, with the nearest one."""
    if name not in files:
        near = difflib.get_close_matches(name, files, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no experiment {name!r}{hint}; choose from {', '.join(files)}")
    return files[name]
