"""The guard against changed numbers sees a changed number, and nothing where nothing has changed."""

import json
from pathlib import Path

import pytest
import torch

from experiments.same_numbers import Runs, differences, digests, main
from experiments.short_runs import RUNS

RUN = "federated"


def test_a_recorded_run_is_the_same_again_and_a_changed_number_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "numbers.json"
    assert main(["record", str(file), "--only", RUN]) == 0
    assert main(["compare", str(file), "--only", RUN]) == 0
    assert "the same numbers in 1 runs" in capsys.readouterr().out
    recorded = json.loads(file.read_text())
    numbers = recorded["runs"][RUN]
    assert not [name for name in numbers if name.endswith("seconds") and "modelled" not in name]
    right = numbers["metrics/round 3/train/loss"]
    # The next float64: nothing is too small to be seen.
    wrong = repr(float(torch.nextafter(torch.tensor(float(right), dtype=torch.float64), torch.tensor(9.0, dtype=torch.float64))))
    numbers["metrics/round 3/train/loss"] = wrong
    file.write_text(json.dumps(recorded))
    assert main(["compare", str(file), "--only", RUN]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{RUN}: metrics/round 3/train/loss: {wrong} -> {right}"


def test_a_run_that_computes_something_else_or_fails_is_seen(tmp_path: Path) -> None:
    changed = {
        "plain": RUNS[RUN],
        "faster": f"{RUNS[RUN]} client.learning_rate=.0500001",
        "failing": f"{RUNS[RUN]} data.root=/nowhere",
        "after": f"{RUNS[RUN]} weights=<failing>",
    }
    runs = Runs(tmp_path, changed)
    plain, faster, failing = (runs.numbers(name) for name in ("plain", "faster", "failing"))
    differing = {line.split(": ")[1] for line in differences({RUN: plain}, {RUN: faster})}
    assert {"metrics", "metrics/round 3/train/loss", "predictions/scores", "checkpoint/state_dict/values"} <= differing
    assert not [name for name in differing if "bytes" in name or "flops" in name]
    assert list(failing) == ["error"]
    assert "/nowhere" in failing["error"]
    assert runs.numbers("after") == failing
    assert f"{RUN}: error: absent -> {failing['error']}" in differences({RUN: plain}, {RUN: failing})


def test_runs_that_one_side_lacks_differ() -> None:
    assert differences({"gone": {}}, {"new": {}}) == ["gone: is no run any more", "new: was not recorded"]


def test_renamed_and_rearranged_tensors_can_be_told_from_changed_ones() -> None:
    first, second = torch.arange(6.0).view(2, 3), torch.tensor([-0.0, 5.0])
    before = digests({"a": first, "b": second})
    assert before == digests({"b": second, "a": first.clone()})

    def changed(tensors: dict[str, torch.Tensor]) -> set[str]:
        return {way for way, digest in digests(tensors).items() if digest != before[way]}

    assert changed({"c": first, "b": second}) == {"named"}
    assert changed({"a": first[0], "b": first[1], "c": second}) == {"named", "nameless"}
    assert changed({"a": first, "b": second.abs()}) == {"named", "nameless", "values"}
