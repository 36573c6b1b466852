"""Whether a change of the code has changed what runs compute, to the last bit.

    python -m experiments.same_numbers record FILE.json     before the change
    python -m experiments.same_numbers compare FILE.json    after it, on the same machine; exits with 1 where a number differs

The runs are those of `experiments.short_runs`, `--only NAME ...` takes some of them. Of each it keeps every number of `summary.json` and
`metrics.csv` that is not a measured time, and digests of the arrays in its run directory and of the tensors in its last checkpoint: by
name, without names, and as a bag of numbers, so that a renamed or rearranged parameter can be told from a changed one. A run that fails
is kept as its error.
"""

import argparse
import csv
import hashlib
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.short_runs import BASE, FOLDERS, RUNS

# Where what is compared is entered, and what it leaves in a run directory.
from mtl.run.config import compose
from mtl.run.train import train

CHECKPOINT = "checkpoints/last.ckpt"
MEASURED = ("seconds", "samples_per_second", "round_seconds", "overhead")

Numbers = dict[str, str]


class Runs:
    """Trains runs by name, each once, in folders of their own under `folder`."""

    def __init__(self, folder: Path, runs: Mapping[str, str] = RUNS) -> None:
        self.folder, self.runs = folder, runs
        self._done: dict[str, Path] = {}

    def numbers(self, name: str) -> Numbers:
        """What the run of this name computes; its error, where it fails."""
        try:
            return read_numbers(self.place(name))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is compared
            return {"error": f"{type(error).__name__}: {error}".replace(str(self.folder), "")}

    def place(self, name: str) -> Path:
        """The folder of this name: of pictures, or the run directory of a run."""
        if name not in self._done:
            folder = self.folder / name
            if name in FOLDERS:
                FOLDERS[name](folder)
            else:
                words = re.sub(r"<(\w+)>", lambda match: str(self.place(match[1])), f"{BASE} {self.runs[name]}")
                train(compose(words.split()), folder)
            self._done[name] = folder
        return self._done[name]


def read_numbers(run_dir: Path) -> Numbers:
    """Everything deterministic in a run directory, by name. Numbers as `repr` writes them, which is exact."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    numbers = {f"summary/{name}": _exact(value) for name, value in summary.items() if not _is_measured(name)}
    with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted((int(round), name, value) for round, name, value in list(csv.reader(file))[1:] if not _is_measured(name))
    numbers["metrics"] = _digest(repr(row).encode() for row in rows)
    numbers |= {f"metrics/round {round}/{name}": value for round, name, value in rows}
    for path in sorted(run_dir.glob("*.npz")):
        with np.load(path) as arrays:
            numbers |= {
                f"{path.stem}/{name}": _digest([f"{array.dtype} {array.shape}".encode(), array.tobytes()])
                for name, array in sorted(arrays.items())
            }
    if (fleet := run_dir / "fleet.csv").exists():
        numbers["fleet"] = _digest([fleet.read_bytes()])
    # The run wrote it a moment ago, so that whatever it holds may be unpickled.
    for part, content in torch.load(run_dir / CHECKPOINT, map_location="cpu", weights_only=False).items():
        tensors = dict(_tensors(content))
        if tensors:
            numbers |= {f"checkpoint/{part}/{way}": digest for way, digest in digests(tensors).items()}
    return numbers


def digests(tensors: Mapping[str, Tensor]) -> Numbers:
    """named: of the tensors in the order of their names; nameless: in no order; values: of all floating-point numbers in no order."""
    each = {name: _digest(_content(value)) for name, value in tensors.items()}
    floats = [value.detach().double().flatten().view(torch.int64) for value in tensors.values() if value.is_floating_point()]
    values = torch.cat([torch.zeros(0, dtype=torch.int64), *floats]).sort().values
    return {
        "named": _digest(f"{name} {each[name]}".encode() for name in sorted(each)),
        "nameless": _digest(value.encode() for value in sorted(each.values())),
        "values": _digest([values.numpy().tobytes()]),
    }


def differences(before: Mapping[str, Numbers], after: Mapping[str, Numbers]) -> list[str]:
    """A line for each number that differs, or that one of both lacks."""
    lines = []
    for run in (*before, *(name for name in after if name not in before)):
        one, other = before.get(run), after.get(run)
        if one is None or other is None:
            lines.append(f"{run}: {'was not recorded' if one is None else 'is no run any more'}")
            continue
        for key in (*one, *(key for key in other if key not in one)):
            if one.get(key) != other.get(key):
                lines.append(f"{run}: {key}: {one.get(key, 'absent')} -> {other.get(key, 'absent')}")
    return lines


def about() -> dict[str, str]:
    """What else the last bit of a number may depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}


def _exact(value: Any) -> str:
    return repr(float(value)) if isinstance(value, int | float) else json.dumps(value)


def _is_measured(name: str) -> bool:
    return name.rpartition("/")[2] in MEASURED


def _tensors(content: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, with where they are."""
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping | list | tuple):
        for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _tensors(value, f"{path}.{name}" if path else str(name))


def _content(value: Tensor) -> list[bytes]:
    content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [f"{value.dtype} {tuple(value.shape)}".encode(), content]


def _digest(parts: Any) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()


def run_all(names: Sequence[str]) -> dict[str, Numbers]:
    """The numbers of the runs of these names, with a line for each."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        for name in names:
            started = time.monotonic()
            found[name] = runs.numbers(name)
            failed = f"  FAILED {found[name]['error']}" if "error" in found[name] else ""
            print(f"{name}  {time.monotonic() - started:.1f} s{failed}", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.same_numbers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=tuple(RUNS), help=f"some of {', '.join(RUNS)}")
    options = parser.parse_args(arguments)
    names = tuple(options.only or RUNS)
    if options.action == "record":
        options.file.write_text(json.dumps({"about": about(), "runs": run_all(names)}, indent=1) + "\n", encoding="utf-8")
        return 0
    recorded = json.loads(options.file.read_text(encoding="utf-8"))
    if recorded["about"] != about():
        print(f"recorded elsewhere, where the last bit may differ: {recorded['about']}, here {about()}")
    before = {name: numbers for name, numbers in recorded["runs"].items() if name in names or not options.only}
    lines = differences(before, run_all(names))
    print("\n".join(lines) if lines else f"the same numbers in {len(names)} runs")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
