"""The files of studies: those of the package, and a user's own in `experiments/studies/`."""

from pathlib import Path

from mtl.run.named_experiments import FOLDER
from mtl.run.options import nearest

SHIPPED = FOLDER / "studies"


def study_files() -> dict[str, Path]:
    """The file of each study by name; those in `experiments/studies/` of the working folder replace those of the package."""
    own = Path.cwd() / "experiments" / "studies"
    return {path.stem: path for place in (SHIPPED, own) for path in sorted(place.glob("*.yaml"))}


def study_file(name: str) -> Path:
    """The file of a study by its name, or the file that `name` is the path of.

    Raises:
        ValueError: there is none of this name.
    """
    files = study_files()
    if name in files:
        return files[name]
    if name.endswith(".yaml") and Path(name).is_file():
        return Path(name)
    raise ValueError(f"no study {name!r}{nearest(name, files)}; choose from {', '.join(files)}, or name a .yaml file")
