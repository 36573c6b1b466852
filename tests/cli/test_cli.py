"""The command line as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mtl.cli.main import main
from mtl.run.config import compose
from mtl.run.train import train
from tests.run.test_train import SMALL, numbers, small, without_time

QUICK = ["augmentation=none", "data.image_size=[8,8]"]
# More rounds than a process makes before its signal comes. With a constant rate a resume may ask for fewer.
ENDLESS = ["rounds=2000", "schedule=constant"]


def words(root: Path, run_dir: Path, *more: str) -> list[str]:
    return ["train", *SMALL, f"data.root={root}", f"output_dir={run_dir}", *more]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mtl", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )


def last_round(run_dir: Path) -> int:
    return max(int(row[0]) for row in numbers(run_dir) if row[0] != "round")


def wait_for_round(run_dir: Path, round: int, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        metrics = run_dir / "metrics.csv"
        if metrics.exists() and any(line.startswith(f"{round},") for line in metrics.read_text().splitlines()):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"round {round} never came")


def test_help_needs_neither_torch_nor_lightning() -> None:
    heavy = "{'torch', 'pytorch_lightning', 'hydra'}"
    code = f"import sys; from mtl.cli.main import main; main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mtl train" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert (
        "unknown command 'trian'; choose from train, experiments, study, report, verify, enrol, recognise, export, latency, compress"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("loss=hing", ["loss must be one of asymmetric, bce", "sphereface2", "got hing; did you mean hinge?"]),
        ("rounds=many", ["rounds must be a whole number, got many"]),
        ("loss.gamma=2", ["gamma", "loss has the keys balance, scale, margin, sharpness, weight"]),
        ("learning_rate=2", ["unknown option learning_rate", "the configuration has the keys", "client", "rounds"]),
        ("client.learning_rate=-1", ["client.learning_rate must be > 0, got -1.0"]),
        ("mirror=3", ["mirror must be true or false, got 3"]),
        ("data.image_size=[1,1]", ["too small for this trunk"]),
        ("data.root=/nowhere", ["data.root", "/nowhere"]),
    ],
)
def test_wrong_words_end_with_a_message_and_not_with_a_traceback(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], override: str, messages: list[str]
) -> None:
    extra = ["trunk=classic_cnn"] if "image_size" in override else []
    assert main(words(class_folders, tmp_path / "run", *extra, override)) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    for message in messages:
        assert message in printed, printed


def test_an_output_folder_that_cannot_be_written_is_said(
    class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(words(class_folders, tmp_path / "file" / "run")) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert str(tmp_path / "file") in printed


def test_runs_of_the_same_second_have_folders_of_their_own() -> None:
    assert len({compose().output_dir for _ in range(3)}) == 3
    config = compose()
    assert config.output_dir == config.output_dir


def test_a_start_that_fails_leaves_no_folder(class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path / "nowhere", tmp_path / "run")) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_a_closed_pipe_is_no_error(arguments: list[str]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "mtl", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_program_gives_the_numbers_of_the_library_and_takes_no_backend_of_a_notebook(
    class_folders: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"MPLBACKEND": "module://nowhere.backend_inline"}
    arguments = words(class_folders, tmp_path / "line", "write_report=true")
    done = subprocess.run([sys.executable, "-m", "mtl", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "line" / "report.html").exists()
    assert "16 images to train" in (tmp_path / "line" / "log.txt").read_text()
    by_hand = train(small(class_folders), tmp_path / "hand")
    assert without_time(json.loads((tmp_path / "line" / "summary.json").read_text())) == without_time(dict(by_hand))


def test_compose_works_inside_a_program_of_hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf.yaml").write_text("a: 1")
    seen: list[tuple[int, int, bool]] = []

    @hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="conf")
    def program(config: DictConfig) -> None:
        seen.append((compose(["rounds=3"]).rounds, config.a, GlobalHydra.instance().is_initialized()))

    monkeypatch.setattr(sys, "argv", ["program", f"hydra.run.dir={tmp_path}"])
    program()
    assert seen == [(3, 1, True)]


def test_report_of_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["federated", pytest.param("centralised", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_numbers_bit_for_bit(class_folders: Path, tmp_path: Path, mode: str) -> None:
    settings = [f"mode={mode}", "evaluate_every=3", "checkpoint_every=4", *ENDLESS]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(words(class_folders, cut, *settings))
    wait_for_round(cut, 6, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cut / "summary.json").exists()
    settings.append(f"rounds={last_round(cut) + 4}")
    assert main(words(class_folders, whole, *settings)) == 0
    assert main(words(class_folders, cut, *settings, "resume=true")) == 0
    assert without_time(json.loads((cut / "summary.json").read_text())) == without_time(
        json.loads((whole / "summary.json").read_text())
    )
    assert numbers(cut) == numbers(whole)


@pytest.mark.parametrize(
    ("mode", "number"), [("federated", signal.SIGINT), pytest.param("centralised", signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_and_sigterm_save_the_round_and_leave(
    class_folders: Path, tmp_path: Path, mode: str, number: signal.Signals
) -> None:
    run_dir = tmp_path / "run"
    process = start(words(class_folders, run_dir, f"mode={mode}", "checkpoint_every=1000", *ENDLESS))
    wait_for_round(run_dir, 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "resume=true" in errors
    assert "Traceback" not in errors
    assert (run_dir / "checkpoints" / "last.ckpt").exists()
    assert not (run_dir / "summary.json").exists()


def test_experiments_are_named_by_their_files(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "mtl" / "experiments"
    names = [path.stem for path in folder.glob("*.yaml")]
    assert "orl" in names
    for name in names:
        assert compose([f"+experiment={name}"]).name == name
