"""Text is UTF-8 in every file, whatever the locale says."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "mtl").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
OPENED_OTHERWISE = ("Image", "os", "zipfile", "tarfile")


def text_calls(source: str) -> Iterator[ast.Call]:
    """Calls that read or write text and name no encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
        modes = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        text = not any("b" in mode and len(mode) <= 3 for mode in modes)
        if name in ("read_text", "write_text") or (name == "open" and text and of not in OPENED_OTHERWISE):
            yield node


def test_a_call_without_an_encoding_is_seen() -> None:
    seen = 'p.read_text()\np.write_text("b")\nopen(p)\np.open("a", newline="")\n'
    passed = 'p.read_text(encoding="utf-8")\np.open("rb")\nopen(p, "wb")\nImage.open(p)\nos.open(p, 0)\n'
    assert [call.lineno for call in text_calls(seen + passed)] == [1, 2, 3, 4]


def test_every_text_file_is_opened_as_utf8() -> None:
    found = [f"{file.relative_to(ROOT)}:{call.lineno}" for file in FILES for call in text_calls(file.read_text(encoding="utf-8"))]
    assert not found


def test_names_beyond_ascii_survive_an_ascii_locale(tmp_path: Path) -> None:
    program = (
        "import sys, locale\nfrom pathlib import Path\nfrom mtl.run.tracking import Tracker\nfrom mtl.run.wandb_run import WandbOptions\n"
        "assert locale.getencoding() != 'UTF-8', locale.getencoding()\nplace = Path(sys.argv[1])\n"
        "for last in (None, 1):\n"
        "    tracker = Tracker(place, {}, wandb=WandbOptions('disabled'), last_round=last)\n"
        "    tracker.log((last or 0) + 1, {'val/Zo\\u00eb \\u540d/auroc': .5})\n    tracker.finish({})\n"
    )
    ascii_locale = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], env=ascii_locale, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert rows == ["round,metric,value", "1,val/Zoë 名/auroc,0.5", "2,val/Zoë 名/auroc,0.5"]
