"""A whole study on small pictures: trained, tabulated, gone on with after a kill, and extended."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mtl
from mtl.cli.main import main
from mtl.studies.study import Study
from tests.run.test_train import SMALL

SMALLER = [word for word in SMALL if not word.startswith(("trunk.", "rounds="))] + ["trunk=flat"]
FILE = """\
# Small pictures.
title: Four classes & 100 %
hours: 0.01
words: [{words}, "data.root={{data}}"]
seeds: [0, 1, 2]
rows:
  - {{name: federated_all, stated: [0 ± 1000, 5 ± 1, 0.5]}}
  - {{name: local, words: [mode=local]}}
  - {{name: one seed, words: [mode=centralised], seeds: [0]}}
columns:
  rank-1 %: {{metric: test/rank1, scale: 100, digits: 1}}
  AUROC: {{metric: test/auroc}}
  last: {{metric: monitor/auroc, round: 2}}
baseline: federated_all
published: [{{name: A & B, source: nobody, cells: [99.9]}}]
quick: {{words: [rounds=1, evaluate_every=1], seeds: 1}}
"""


@pytest.fixture
def study_yaml(tmp_path: Path, class_folders: Path) -> Path:
    file = tmp_path / "small.yaml"
    words = [word for word in SMALLER if "=[" not in word] + ['"data.image_size=[16,16]"', "rounds=2"]
    file.write_text(FILE.format(words=", ".join(words)))
    return file


def command(file: Path, *more: str) -> list[str]:
    root = file.parent
    return ["study", str(file), "--data", str(root / "pictures"), "--runs", str(root / "runs"), *more]


def numbers(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as table:
        return [
            {key: value for key, value in row.items() if key != "run" or "table" in file.name} for row in csv.DictReader(table)
        ]


def test_one_command_trains_what_is_missing_and_makes_the_table(
    study_yaml: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study_yaml.parent)
    assert main(command(study_yaml, "--table")) == 1
    printed = capfd.readouterr()
    assert "[5 ± 1]" in printed.out
    assert "7 of 7 runs are missing, of federated_all, local, one seed" in printed.err
    assert main(command(study_yaml, "--dry-run")) == 0
    assert "7 runs: 7 new" in capfd.readouterr().out
    assert main(command(study_yaml)) == 0
    printed = capfd.readouterr()
    assert "outside" in printed.out
    assert "With 3 pairs the sign-flip test cannot give a p-value below 0.25" in printed.out
    folder = study_yaml.parent / "runs"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
    assert len(made) == 7
    table = folder / "table"
    assert {path.name for path in table.iterdir()} == {
        "table.md", "table.tex", "table.csv", "runs.csv", "figure.png", "figure.pdf",
    }  # fmt: skip
    latex = (table / "table.tex").read_text()
    assert r"\caption{Four classes \& 100 \%}" in latex
    assert r"federated\_all & 3 &" in latex
    assert r"A \& B (nobody)" in latex
    row, *_, published = numbers(table / "table.csv")
    places = [path.parent for path in made if "mode: federated" in (path.parent / "config.yaml").read_text()]
    values = [float(json.loads((place / "summary.json").read_text())["test/rank1"]) for place in places]
    assert len(values) == 3
    assert float(row["rank-1 %"]) == pytest.approx(100 * sum(values) / 3)
    assert (row["rank-1 % stated"], row["rank-1 % stated sd"], published["rank-1 %"]) == ("0.0", "1000.0", "99.9")
    runs = numbers(table / "runs.csv")
    assert [run["seed"] for run in runs] == ["0", "1", "2", "0", "1", "2", "0"]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")} == made

    study = mtl.Study(str(study_yaml), folder=folder, data=str(study_yaml.parent / "pictures"))
    frame = study.frame()
    assert frame["rank-1 %"].tolist() == [row["rank-1 %"] for row in study.rows()]
    assert list(frame.columns) == ["row", "seed", "run", "rank-1 %", "AUROC", "last"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Study.frame needs pandas: pip install 'mtl\[pandas\]'"):
        study.frame()

    # An incomplete grid: the row is marked, and not compared.
    (Path(next(run["run"] for run in study.rows() if (run["row"], run["seed"]) == ("local", 1))) / "summary.json").unlink()
    capfd.readouterr()
    assert main(command(study_yaml, "--table")) == 1
    printed = capfd.readouterr()
    assert "Incomplete, and not compared: local lacks seed 1." in printed.out
    assert "2 of 3" in printed.out
    against = printed.out.partition("Against:")[2].partition("Stated values")[0]
    assert "local" not in against
    assert "one seed" in against


def test_the_quick_form_has_a_folder_of_its_own_and_says_so(
    study_yaml: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study_yaml.parent)
    assert main(["study", str(study_yaml), "--quick", "--data", "pictures", "trainer.threads=1"]) == 0
    printed = capfd.readouterr().out
    assert "QUICK, at reduced size" in printed
    assert "nobody" not in printed
    assert "Stated values" not in printed
    assert {path.name for path in Path("runs/studies").iterdir()} == {"small-quick"}
    assert len(list(Path("runs/studies/small-quick").glob("*/summary.json"))) == 3
    assert "stated" not in Path("runs/studies/small-quick/table/table.csv").read_text()


def test_words_that_change_what_a_run_computes_are_refused(study_yaml: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(study_yaml, "client.learning_rate=.5")) == 2
    assert "these change what they compute: client.learning_rate" in capfd.readouterr().err
    assert main(["study", "orll"]) == 2
    assert "no study 'orll'; did you mean orl?" in capfd.readouterr().err
    assert main(["study"]) == 2
    assert "mtl study --list shows them" in capfd.readouterr().err


def test_missing_data_are_named_with_their_source(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "lfw_people", "--data", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 2
    printed = capfd.readouterr().err
    assert f"celeba is not in {tmp_path}" in printed
    assert "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html" in printed
    assert f"lfw is not in {tmp_path}" in printed
    assert not (tmp_path / "runs").exists()


def test_the_list_says_cost_and_state(
    study_yaml: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study_yaml.parent)
    folder = study_yaml.parent / "experiments" / "studies"
    folder.mkdir(parents=True)
    study_yaml.rename(folder / "small.yaml")
    (folder / "broken.yaml").write_text("title: 3")
    assert main(["study", "--list"]) == 0
    lines = capfd.readouterr().out
    assert "0 of 7" in lines
    assert "celeba, lfw" in lines
    assert "must have hours" in " ".join(lines.replace("│", " ").split())


@pytest.mark.slow
def test_killed_twice_and_extended_it_ends_in_the_numbers_of_an_uninterrupted_study(study_yaml: Path) -> None:
    study_yaml.write_text(
        study_yaml.read_text().replace("rounds=2", "rounds=60").replace("evaluate_every=2", "evaluate_every=20")
    )
    whole = [*command(study_yaml), "--more-seeds", "2"]
    whole[whole.index("--runs") + 1] = str(study_yaml.parent / "whole")
    assert main(whole) == 0
    for part in (3, 8):
        process = subprocess.Popen(
            [sys.executable, "-m", "mtl", *command(study_yaml)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_lines(study_yaml.parent / "runs", process, part)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (study_yaml.parent / "runs" / "table").exists()
    assert main(command(study_yaml)) == 0
    assert main([*command(study_yaml), "--more-seeds", "2"]) == 0
    tables = [study_yaml.parent / name / "table" for name in ("whole", "runs")]
    assert numbers(tables[0] / "table.csv") == numbers(tables[1] / "table.csv")
    assert numbers(tables[0] / "runs.csv") == numbers(tables[1] / "runs.csv")
    assert (
        len(Study(str(study_yaml), folder=tables[1].parent, data=str(study_yaml.parent / "pictures"), more_seeds=2).rows()) == 13
    )


@pytest.mark.slow
def test_two_processes_share_a_study(study_yaml: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-m", "mtl", *command(study_yaml)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate()[1].decode() for process in processes]
    assert 0 in [process.returncode for process in processes], errors
    made = {path: path.stat().st_mtime_ns for path in (study_yaml.parent / "runs").glob("*/summary.json")}
    assert len(made) == 7
    assert main(command(study_yaml)) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made


def wait_for_lines(folder: Path, process: "subprocess.Popen[bytes]", part: int) -> None:
    """Until a run is in the middle: some rounds are logged, and it is not the last of the study."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        done = len(list(folder.glob("*/summary.json")))
        rounds = [
            file.read_text().count("\n") for file in folder.glob("*/metrics.csv") if not (file.parent / "summary.json").exists()
        ]
        if done >= part // 4 and any(count > 10 * part for count in rounds):
            return
        assert process.poll() is None
        time.sleep(0.005)
    raise AssertionError("the study never got so far")
