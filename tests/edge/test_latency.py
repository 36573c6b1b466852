"""How long one image takes: the arithmetic, and files that cannot be measured."""

import json
import platform
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from mtl.cli.main import main
from mtl.edge.latency import measure, measure_file, set_executorch_threads
from mtl.edge.machine import processor
from mtl.models.cnn import classic_cnn
from mtl.models.flops import count_forward, num_parameters


def test_the_calls_that_count_are_as_many_as_were_asked_for_and_take_turns() -> None:
    order: list[str] = []
    latencies = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warmup=2, repeats=11)
    assert [latencies[name].repeats for name in "ab"] == [11, 11]
    assert order.count("a") == order.count("b") >= 13
    assert order.index("b") < len(order) - order[::-1].index("a")  # a has a turn after b's first


def test_percentiles_are_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # Call i takes i ms: 1 to 101, whose median is 51 and 90th percentile 91.
    ticks = iter([tick for i in range(1, 102) for tick in (0.0, i / 1e3)])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    latencies = measure({"it": lambda: None}, warmup=0, repeats=101)["it"]
    assert (latencies.p50, latencies.p90) == pytest.approx((51.0, 91.0))


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


def model_of(shape: list[object], kind: int = TensorProto.FLOAT, inputs: int = 1) -> bytes:
    """An ONNX model that gives back its first input."""
    given = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x0"], ["y"])], "g", given, [helper.make_tensor_value_info("y", kind, shape)]
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model_of(["N", 3, "H", "W"]), r"must take images of one size: .* got \[N, 3, H, W\]"),
        (model_of([None, 3, None, 8]), r"must take images of one size"),
        (model_of([8, 3, 8, 8]), r"must take one image or any number: .* got \[8, 3, 8, 8\]"),
        (model_of(["N", 4], TensorProto.INT64), r"must take uint8 or float32, got tensor\(int64\)"),
        (model_of(["N", 4], inputs=2), r"must have one input, images \[N, c, H, W\], got 2"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert main(["latency", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_latency_says_what_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "model.onnx", tmp_path / "latency.json"
    path.write_bytes(model_of(["N", 3, 8, 8]))
    assert main(["latency", str(path), "--threads", "2", "--repeats", "5", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert content["milliseconds"]["repeats"] == 5
    assert content["machine"]["threads"] == 2
    assert content["machine"]["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert content["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert content["machine"]["processor"] in capsys.readouterr().out
    assert main(["latency", str(path), "--output", str(tmp_path / "none" / "latency.json")]) == 2
    assert "--output must be in a folder that exists" in capsys.readouterr().err


def test_threads_reach_the_pool_of_executorch(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimpleNamespace(threads=8)
    calls = SimpleNamespace(
        _threadpool_get_thread_count=lambda: pool.threads,
        _unsafe_reset_threadpool=lambda threads: setattr(pool, "threads", threads),
    )
    monkeypatch.setitem(sys.modules, "executorch.extension.pybindings.portable_lib", calls)
    for name in ("executorch", "executorch.extension", "executorch.extension.pybindings"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    set_executorch_threads(3)
    assert pool.threads == 3
    calls._unsafe_reset_threadpool = lambda threads: None
    with pytest.raises(ValueError, match=r"threads=2 cannot be set: ExecuTorch's pool has 3"):
        set_executorch_threads(2)
    del calls._unsafe_reset_threadpool
    with pytest.raises(ValueError, match=r"threads=2 cannot be set: this executorch has no call for its thread pool"):
        set_executorch_threads(2)


def test_a_machine_names_its_processor_or_its_board(monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, str] = {}
    monkeypatch.setattr(Path, "is_file", lambda self: str(self) in files)
    monkeypatch.setattr(Path, "read_text", lambda self, **_: files[str(self)])
    files["/proc/cpuinfo"] = "processor\t: 0\nmodel name\t: AMD EPYC 7R13\n"
    assert processor() == "AMD EPYC 7R13"
    files["/proc/cpuinfo"] = "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.5\n"
    assert processor() == "Raspberry Pi 4 Model B Rev 1.5"
    files.clear()
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert processor() == "arm"
