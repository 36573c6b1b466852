"""Tables as files: letters that mean something elsewhere, one line of heads, and numbers that stay numbers."""

import csv
import json
from pathlib import Path

import pytest

from mtl.cli.main import main
from mtl.report.table_files import STRONG, WEAK, Entry, TextTable, csv_text, escape_latex, latex, markdown
from tests.report.test_report_tables import write_run

TABLE = TextTable(
    "100 % of A_B",
    ("run", "n & m", "AUROC"),
    (
        (Entry("a_1 | {x}"), Entry("2"), Entry("0.9 ± 0.1", STRONG)),
        (Entry("b\\c ~ ^ #$<"), Entry("3"), Entry("0.8 ± 0.1", WEAK)),
    ),
    ("p < .05",),
)


def test_latex_has_the_rules_of_booktabs_and_no_letter_is_a_command() -> None:
    text = latex(TABLE, "tab:a_b")
    assert [line for line in text.splitlines() if line.startswith(("\\top", "\\mid", "\\bottom"))] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    assert r"\caption{100 \% of A\_B}" in text
    assert r"\label{tab:a-b}" in text
    assert r"run & n \& m & AUROC \\" in text
    assert r"a\_1 \textbar{} \{x\} & 2 & \textbf{0.9 $\pm$ 0.1} \\" in text
    assert r"b\textbackslash{}c \textasciitilde{} \textasciicircum{} \#\$\textless{} & 3 & \underline{0.8 $\pm$ 0.1} \\" in text
    assert r"p \textless{} .05" in text
    assert escape_latex("one\ntwo") == "one two"


def test_markdown_escapes_bars_and_stars() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[2:5] == ["| run | n & m | AUROC |", "|---|---:|---:|", "| a_1 \\| {x} | 2 | **0.9 ± 0.1** |"]
    assert lines[5] == "| b\\\\c ~ ^ #$&lt; | 3 | *0.8 ± 0.1* |"
    assert lines[-1] == "- p &lt; .05"


def test_csv_has_one_line_of_heads_and_an_empty_field_for_nothing() -> None:
    rows = list(csv.reader(csv_text(("a", 'b "c", d'), [["x,\ny", None], [1.5, 0]]).splitlines(keepends=True)))
    assert rows == [["a", 'b "c", d'], ["x,\ny", ""], ["1.5", "0"]]


def test_a_report_writes_its_table_and_every_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    folder.mkdir()
    for name, seed, mode, rank1 in (("a", 0, "x_y", 0.90), ("b", 1, "x_y", 0.94), ("c", 0, "local", 0.5)):
        summary: dict[str, float | None] = {"test/rank1": rank1, "test/auroc": None, "fit/seconds": 3.0}
        write_run(folder / name, seed, mode, summary)
    (folder / "c" / "summary.json").write_text(json.dumps({"test/rank1": 0.5, "fit/chosen_by": "val/rank1"}))
    files = {name: tmp_path / "out" / f"table.{name}" for name in ("csv", "tex", "long")}
    words = ["--csv", str(files["csv"]), "--latex", str(files["tex"]), "--frame", str(files["long"])]
    assert main(["report", str(folder), *words]) == 0
    assert f"written: {files['tex']}" in capsys.readouterr().out
    with files["csv"].open() as file:
        first, second = csv.DictReader(file)
    # 92 ± sqrt((2² + 2²) / 1) %
    assert (first["run"], first["n"], float(first["test/rank1"])) == ("x_y", "2", pytest.approx(0.92))
    assert float(first["test/rank1 sd"]) == pytest.approx(0.0282843, rel=1e-5)
    assert (second["test/rank1 sd"], second["test/auroc"], second["fit/seconds"]) == ("", "", "")
    assert r"x\_y & 2 & 92.0 $\pm$ 2.8 & --" in files["tex"].read_text()
    with files["long"].open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["group", "run", "seed", "metric", "value"]
    assert [row["value"] for row in rows if row["metric"] == "test/rank1"] == ["0.9", "0.94", "0.5"]
    assert len(rows) == 3 + 3 + 1
