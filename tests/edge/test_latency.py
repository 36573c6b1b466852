"""How long one image takes: the arithmetic, and files that cannot be measured."""

import time
from pathlib import Path

import pytest
import torch

from mtl.cli import main
from mtl.edge.latency import measure, measure_file
from mtl.models.cnn import classic_cnn
from mtl.models.flops import count_forward, num_parameters


def test_the_calls_that_count_are_as_many_as_were_asked_for_and_take_turns() -> None:
    order: list[str] = []
    found = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warmup=2, repeats=11)
    assert [found[name].repeats for name in "ab"] == [11, 11]
    assert order.count("a") == order.count("b") >= 13
    assert order.index("b") < len(order) - order[::-1].index("a")  # a has a turn after b's first


def test_percentiles_are_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # Call i takes i ms: 1 to 101, whose median is 51 and 90th percentile 91.
    ticks = iter([tick for i in range(1, 102) for tick in (0.0, i / 1e3)])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    found = measure({"it": lambda: None}, warmup=0, repeats=101)["it"]
    assert (found.p50, found.p90) == pytest.approx((51.0, 91.0))


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(b"\x08\x0a\x12\xff\xff")
    (tmp_path / "model.zip").write_bytes(b"")
    cases = {
        str(torn): "must be a whole ONNX model",
        str(tmp_path / "model.zip"): "must be named .onnx or .pte",
        str(tmp_path / "none.onnx"): "no such file",
    }
    for path, message in cases.items():
        assert main(["latency", path]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"threads must be >= 1, got 0"):
        measure_file(torn, threads=0)
    with pytest.raises(ValueError, match=r"repeats must be >= 1, got 0"):
        measure({"it": lambda: None}, repeats=0)


def test_costs_are_those_of_a_count_by_hand() -> None:
    trunk = classic_cnn((3, 32, 32))
    # As published: 1,626,442 with ten linear heads of 128 + 1.
    assert num_parameters(trunk) == 1_626_442 - 10 * 129
    by_hand = 2 * (30 * 30 * 32 * 27 + 28 * 28 * 64 * 288 + 12_544 * 128)
    assert count_forward(trunk.eval(), (3, 32, 32)) == by_hand
    assert torch.is_grad_enabled()
