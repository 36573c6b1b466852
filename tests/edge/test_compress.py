"""A run made smaller step by step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig

from mtl.cli.main import main
from mtl.models.flops import num_parameters
from mtl.run.build import read_config
from mtl.run.load import load_run
from mtl.trained.compress import CompressOptions, compress, with_overrides
from mtl.trained.export import Exported, ExportOptions
from tests.edge.conftest import Train
from tests.run.test_train import kill_after

TRUNK = ("mode=centralised", "trunk=classic_cnn", "trunk.channels=[8,16]", "trunk.width=16")


@pytest.mark.slow
def test_a_recipe_becomes_a_table_from_one_run(trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, out = trained(*TRUNK), tmp_path / "out"
    words = [
        "--recipe",
        "distil",
        "prune",
        "sparsify",
        "int8",
        "--student",
        "trunk.channels=[8,8]",
        "--rounds",
        "2",
        "--out",
        str(out),
    ]
    assert main(["compress", str(run_dir), *words]) == 0
    content = json.loads((out / "compress.json").read_text())
    rows, machine = content["steps"], content["machine"]
    assert machine["threads"] == 1
    assert machine["processor"]
    assert machine["runtime"].startswith("onnxruntime ")
    assert {"torch", "mtl", "onnxruntime", "python"} <= set(machine["versions"])
    assert [row["step"] for row in rows] == ["as it is", "distil", "prune", "sparsify", "int8"]
    assert [row["num_bytes"] for row in rows] == [path.stat().st_size for path in sorted(out.glob("*.onnx"))]
    sizes = [row["parameters"] for row in rows]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] == sizes[4]
    assert rows[0]["flops"] > rows[1]["flops"] > rows[2]["flops"] == rows[3]["flops"] == rows[4]["flops"]
    # Zeros take as much room as other numbers; the files name their runs.
    assert rows[3]["num_bytes"] - rows[2]["num_bytes"] == len("sparsify") - len("prune")
    assert rows[3]["num_bytes"] > rows[4]["num_bytes"]
    assert rows[2]["zeros"] < 0.1 < 0.5 < rows[3]["zeros"] == rows[4]["zeros"]
    assert all(0 < row["p50"] <= row["p90"] and 0 <= row["rank1"] <= 1 for row in rows)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert rows[0]["rank1"] == summary["test/rank1"]
    pruned = load_run(out / "prune")
    assert pruned.config.distil.teacher == str(run_dir)  # it still learns from the run
    assert [p.shape[0] for n, p in pruned.model.trunk.named_parameters() if n.endswith("weight")] == [4, 4, 16]
    assert rows[0]["worst_clients_auroc"] == summary["test/worst_clients_auroc"]
    assert rows[0]["worst_task_auroc"] == summary["test/worst_task_auroc"]
    assert (out / "compress.png").read_bytes().startswith(b"\x89PNG")
    assert "rank-1 %" in capsys.readouterr().out


def test_each_step_starts_from_the_one_before(
    trained: Train, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, exports = trained(*TRUNK), []

    def export_nothing(run: Path, options: ExportOptions, *, out: Path, data_root: str | None) -> Exported:
        exports.append((run, options.int8, out.name))
        shutil.copy(exported.path, out)
        return exported

    monkeypatch.setattr("mtl.trained.compress.export_run", export_nothing)
    rows = compress(run_dir, CompressOptions(["prune", "int8"], ratio=0.5, rounds=1, repeats=5), out=tmp_path)
    assert exports == [
        (run_dir, False, "0_as_it_is.onnx"),
        (tmp_path / "prune", False, "1_prune.onnx"),
        (tmp_path / "prune", True, "2_int8.onnx"),
    ]
    before, pruned = load_run(run_dir), load_run(tmp_path / "prune")
    assert pruned.config.start == str(run_dir)
    assert pruned.config.client.learning_rate == pytest.approx(0.3 * before.config.client.learning_rate)
    assert [row.parameters for row in rows] == [num_parameters(run.model) for run in (before, pruned, pruned)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "shrink"], "recipe must be steps of distil, prune, sparsify, int8, got shrink"),
        (["--recipe", "int8", "prune"], "in the order distil, prune, sparsify, int8, got int8, prune"),
        (["--recipe", "int8", "--student", "trunk.width=8"], "student needs the step distil"),
        (["--recipe", "distil", "--student", "trunk.depth=8"], "student must be KEY=VALUE with a key of the run's configuration"),
        (["--recipe", "distil", "--student", "trunk.width=many"], "trunk.width must be a whole number"),
        (["--recipe", "int8", "--data-root", "nowhere"], "nowhere"),
        (["--recipe", "int8", "--rounds", "0"], "rounds must be >= 1, got 0"),
        (["--recipe", "int8", "--threads", "0"], "threads must be >= 1, got 0"),
        (["--recipe", "prune", "--ratio", "1"], r"prune.ratio must be in \(0, 1\)"),
        (["--recipe", "sparsify", "--sparsity", "0"], r"prune.ratio must be in \(0, 1\)"),
    ],
)
def test_a_start_that_fails_ends_with_a_message_and_leaves_no_folder(
    trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert main(["compress", str(trained(*TRUNK)), *words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message.replace("\\", "") in error
    assert "goes on" not in error
    assert not out.exists()


def test_a_missing_run_leaves_no_folder(tmp_path: Path) -> None:
    assert main(["compress", str(tmp_path / "run"), "--recipe", "int8"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_student_that_cannot_be_built_stands_not_in_the_way_of_another(
    trained: Train, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, out, made = trained(*TRUNK), tmp_path / "out", []

    def export_nothing(run: Path, options: ExportOptions, *, out: Path, data_root: str | None) -> Exported:
        made.append(out.name)
        shutil.copy(exported.path, out)
        return exported

    monkeypatch.setattr("mtl.trained.compress.export_run", export_nothing)
    options = CompressOptions(["distil"], ["trunk.width=-1"], rounds=1, repeats=5)
    with pytest.raises(ValueError, match=r"width") as failed:
        compress(run_dir, options, out=out)
    assert not hasattr(failed.value, "__notes__")
    rows = compress(run_dir, replace(options, student=["trunk.width=8"]), out=out)
    assert [row.step for row in rows] == ["as it is", "distil"]
    assert made == ["0_as_it_is.onnx", "1_distil.onnx"]
    with pytest.raises(ValueError, match="holds another recipe, which differs in student"):
        compress(run_dir, options, out=out)


def test_a_recipe_goes_on_where_it_stopped(
    trained: Train, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, out, made = trained(*TRUNK), tmp_path / "out", []

    def export_nothing(run: Path, options: ExportOptions, *, out: Path, data_root: str | None) -> Exported:
        made.append(out.name)
        shutil.copy(exported.path, out)
        return exported

    def stop(config: DictConfig, directory: Path) -> None:
        kill_after(config, directory, rounds=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("mtl.trained.compress.export_run", export_nothing)
    monkeypatch.setattr("mtl.trained.compress.train", stop)
    options = CompressOptions(["prune", "int8"], rounds=2, repeats=5)
    with pytest.raises(KeyboardInterrupt) as stopped:
        compress(run_dir, options, out=out)
    assert stopped.value.__notes__ == [
        f"what is done is in {out}: the same command goes on there, another recipe needs another --out"
    ]
    assert made == ["0_as_it_is.onnx"]
    monkeypatch.undo()
    monkeypatch.setattr("mtl.trained.compress.export_run", export_nothing)
    rows = compress(run_dir, options, out=out)
    assert made == ["0_as_it_is.onnx", "1_prune.onnx", "2_int8.onnx"]
    assert [row.step for row in rows] == ["as it is", "prune", "int8"]
    assert load_run(out / "prune").round == 2
    # All is done: nothing is trained or exported again.
    monkeypatch.setattr("mtl.trained.compress.train", lambda *_: pytest.fail("trained again"))
    assert len(compress(run_dir, options, out=out)) == 3
    assert len(made) == 3
    with pytest.raises(ValueError, match=r"holds another recipe, which differs in ratio \(0.5 there, 0.25 now\)"):
        compress(run_dir, replace(options, ratio=0.25), out=out)
    (out / "steps.json").write_text("{")
    with pytest.raises(ValueError, match=r"steps.json is damaged"):
        compress(run_dir, options, out=out)


def test_a_folder_in_use_is_left_as_it_is(trained: Train, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(ValueError, match="out must be a new or an empty folder"):
        compress(trained(*TRUNK), CompressOptions(["int8"]), out=tmp_path)


def test_a_student_may_have_another_trunk(trained: Train) -> None:
    config = with_overrides(read_config(trained(*TRUNK)), ["trunk=lenet", "seed=3"])
    assert config.trunk["_target_"] == "mtl.models.cnn.lenet" or "lenet" in str(config.trunk)
    assert config.seed == 3
