"""The folder of `mtl compress`: which recipe it holds, and what each finished step gave, in `steps.json`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtl.base.files import write_json

STEPS = ("distil", "prune", "sparsify", "int8")
START = "as it is"  # the run before any step
FILE = "steps.json"


@contextlib.contextmanager
def recipe_folder(out: Path, recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Open the folder of a recipe, and yield what each finished step gave, by the step's name.

    An error leaves with a note on how to go on where a step of the recipe is finished or has saved a round. Before that it leaves nothing
    that stands in the way of another recipe of the same run.

    Args:
        out: the folder; it is made.
        recipe: the options that change what a step gives, and `run`, the run that is compressed.

    Raises:
        ValueError: `out` holds anything but this recipe.
    """
    is_new = not out.exists()
    facts = _read_steps(out, recipe)
    out.mkdir(parents=True, exist_ok=True)
    try:
        write_steps(out, recipe, facts)
        yield facts
    except BaseException as error:
        if _is_begun(out, facts):
            error.add_note(f"what is done is in {out}: the same command goes on there, another recipe needs another --out")
        elif not facts:
            (out / FILE).unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):
                    out.rmdir()  # only an empty folder
        raise


def _read_steps(out: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {out}")
    file = out / FILE
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"out must be a new or an empty folder, or one that holds this recipe, got {out}")
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        before, facts = dict(content["asked"]), dict(content["steps"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is damaged: expected what mtl compress wrote; use another out") from error
    differing = [name for name, value in recipe.items() if before.get(name) != value]
    if not differing:
        return facts
    if "run" not in differing and not _is_begun(out, facts):
        return facts  # at most the run as it is, the same in every recipe
    values = ", ".join(f"{name} ({before.get(name)} there, {recipe[name]} now)" for name in differing)
    raise ValueError(f"out {out} holds another recipe, which differs in {values}; use another out")


def _is_begun(out: Path, facts: dict[str, Any]) -> bool:
    """Whether a step of the recipe is finished, or its training has saved or logged a round."""
    return bool(set(facts) - {START}) or any(_has_rounds(out / step) for step in STEPS)


def _has_rounds(run_dir: Path) -> bool:
    metrics = run_dir / "metrics.csv"
    logged = len(metrics.read_text(encoding="utf-8").splitlines()) > 1 if metrics.is_file() else False
    return logged or (run_dir / "checkpoints" / "last.ckpt").is_file()


def write_steps(out: Path, recipe: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write `steps.json`, see `recipe_folder`."""
    write_json(out / FILE, {"asked": recipe, "steps": facts})
