"""The page stands alone, shows what there is, says what is not, and believes nothing that a file says."""

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from mtl.report.curves import draw_costs
from mtl.report.groups import group_runs
from mtl.report.page import write_report
from mtl.report.runs import read_run
from mtl.report.tables import columns_of


class Page(HTMLParser):
    """References, tag names, headings and text of a page; fails on a tag that closes none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    fabricate = request.getfixturevalue("fabricate")
    folder = tmp_path_factory.mktemp("comparison")
    size = {"num_tasks": 4, "num_clients": 2, "num_rounds": 10}
    runs = [
        fabricate(folder / f"{mode}{seed}", mode=mode, seed=seed, **size) for mode in ("federated", "local") for seed in range(2)
    ]
    return write_report(runs)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return write_report([request.getfixturevalue("fabricate")(tmp_path_factory.mktemp("single"))])


def test_a_single_report_lies_in_its_run_and_needs_nothing_but_itself(single: Path) -> None:
    assert single.name == "report.html"
    assert (single.parent / "config.yaml").exists()
    page = Page(single)
    assert len(page.references) == 6
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    style = single.read_text().split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import", style)


def test_every_png_decodes_is_not_blank_and_is_the_embedded_one(single: Path) -> None:
    embedded = {base64.b64decode(reference.split(",")[1]) for reference in Page(single).references}
    files = list((single.parent / "figures").glob("*.png"))
    assert {file.stem for file in files} == {"learning", "costs", "tasks", "holdings", "confusion", "separation"}
    assert {file.read_bytes() for file in files} == embedded
    for data in embedded:
        pixels = imread(BytesIO(data))
        assert pixels.shape[1] > 600
        assert np.ptp(pixels[..., :3]) > 0.5


def test_the_worst_task_is_named_and_the_command_is_given(single: Path) -> None:
    summary = json.loads((single.parent / "summary.json").read_text())
    aurocs = {key.split("/")[1]: value for key, value in summary.items() if re.fullmatch(r"test/s\d+/auroc", key)}
    text = Page(single).text
    assert f"Worst task by AUROC{min(aurocs, key=aurocs.__getitem__)}" in text
    assert "python -m mtl train experiment=faces mode=federated seed=0" in text
    assert "git checkout 3f2c1ab09d" in text


def test_a_comparison_lies_in_the_common_parent_and_names_groups_by_what_differs(comparison: Path) -> None:
    text = Page(comparison).text
    assert (comparison.parent / "federated0" / "config.yaml").exists()
    assert all(words in text for words in ("4 runs in 2 groups", "mode=federated", "mode=local"))
    assert {"comparison.png", "learning.png", "profiles.png", "tradeoff.png"} <= {
        file.name for file in (comparison.parent / "figures").iterdir()
    }


def test_modelled_costs_are_drawn_and_called_so_where_there_is_a_fleet(tmp_path: Path, fabricate, single: Path) -> None:
    size = {"num_tasks": 4, "num_clients": 2, "num_rounds": 10}
    run = fabricate(tmp_path / "run", has_fleet=True, **size)
    figure = draw_costs(group_runs([read_run(run)]))
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "round",
        "sent and received by all clients, MB",
        "modelled time, s",
        "modelled energy of all clients, J",
    ]
    # At the last round: 1.634 MB up and as much down for each of two clients in each of ten rounds; 12.5 s and 80 J a round.
    last = [axes.lines[0].get_xdata()[-1] for axes in figure.axes]
    assert last == pytest.approx([10, 2 * 2 * 1.634 * 10, 125, 800])
    page = Page(write_report([run]))
    assert all(words in page.text for words in ("Modelled seconds125.0", "Modelled energy per client400 J", "not measured"))
    assert "Modelled seconds" not in Page(single).text
    other = fabricate(tmp_path / "other", mode="centralised", **size)
    both = group_runs([read_run(run), read_run(other)])
    assert "Modelled energy per client" in [column.title for column in columns_of(both)]


def test_the_target_is_a_line_across_the_curves_and_in_the_table(tmp_path: Path, fabricate) -> None:
    size = {"num_tasks": 4, "num_clients": 2, "num_rounds": 10, "has_fleet": True}
    reached, missed = (
        fabricate(tmp_path / name, config={"target_accuracy": target}, **size)
        for name, target in (("reached", 0.5), ("missed", 0.99))
    )
    summary = json.loads((reached / "summary.json").read_text())
    costs = {"fit/target_round": 4, "cost/modelled_seconds_to_target": 50.0, "cost/modelled_joules_to_target": 3200.0}
    (reached / "summary.json").write_text(json.dumps(summary | costs))
    figure = draw_costs(group_runs([read_run(reached)]))
    assert [axes.lines[-1].get_ydata() for axes in figure.axes] == [[0.5, 0.5]] * 4
    text = Page(write_report([reached])).text
    assert all(
        words in text for words in ("Target: 50 % on validation imagesreached in round 4", "Modelled energy to target3.2 kJ")
    )
    text = Page(write_report([missed])).text
    assert "Target: 99 % on validation imagesnot reached" in text
    assert "Rounds to target" not in text


def test_drawing_leaves_no_global_setting_and_no_pyplot_behind(comparison: Path) -> None:
    assert comparison.exists()
    assert matplotlib.rcParams["text.parse_math"] is True
    code = "import sys, mtl.report.page; print(chr(10).join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "matplotlib.figure" in loaded
    assert "matplotlib.pyplot" not in loaded


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAgg"])
def test_a_backend_that_a_notebook_has_left_behind_changes_nothing(backend: str, tmp_path: Path) -> None:
    """torchmetrics imports pyplot, and Lightning torchmetrics: a run is none without it."""
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.csv").write_text("round,metric,value\n1,train/loss,0.5\n2,train/loss,0.4\n")
    code = f"""import os, sys, mtl.report.page as page
from pathlib import Path
page.write_report([Path({str(tmp_path)!r})])
assert "matplotlib.pyplot" not in sys.modules and os.environ["MPLBACKEND"] == {backend!r}
import matplotlib.pyplot"""
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "figures" / "learning.png").exists()


def test_a_backend_that_is_there_stays_the_users_choice() -> None:
    code = "import mtl.report.page, matplotlib; print(matplotlib.rcParams['backend'])"
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": "svg"}, capture_output=True, text=True)
    assert ran.stdout.strip() == "svg"


def test_text_from_files_is_escaped(tmp_path: Path, fabricate) -> None:
    evil = "<script>alert('&')</script>"
    fabricate(tmp_path, num_tasks=2, num_clients=2, num_rounds=5, config={"name": evil, "mode": "local", "note": evil})
    environment = {"commit": evil, "dirty": True, "command": evil, "machine": evil, "versions": {evil: evil}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    summary = {f"test/{evil}/auroc": 0.5, "test/$x_$/auroc": 0.9, "test/面/auroc": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report([tmp_path]))
    assert "script" not in page.tags
    assert page.text.count(evil) >= 8
    assert "No AUROC, for want of test positives or negatives: 面." in page.text


def test_an_unfinished_run_shows_what_there_is_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.csv").write_text("round,metric,value\n1,train/loss,0.5\n2,train/loss,0.4\n3,train/lo")
    page = Page(write_report([tmp_path]))
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["learning.png"]
    for name in ("summary.json", "predictions.npz", "federation.npz", "environment.json"):
        assert f"{name} is missing" in page.text
    assert "1 torn or unreadable line" in page.text


def test_a_figure_of_an_older_report_does_not_outlive_its_data(tmp_path: Path, fabricate) -> None:
    fabricate(tmp_path, num_tasks=2, num_clients=2, num_rounds=5)
    write_report([tmp_path])
    (tmp_path / "federation.npz").unlink()
    write_report([tmp_path])
    assert not (tmp_path / "figures" / "holdings.png").exists()


def test_attributes_have_no_confusion_but_a_separation(tmp_path: Path, fabricate) -> None:
    size = {"num_tasks": 3, "num_clients": 2, "num_rounds": 5, "images_per_task": 20}
    page = Page(write_report([fabricate(tmp_path / "run", is_exclusive=False, **size)], tmp_path / "out"))
    names = {file.name for file in (tmp_path / "out" / "figures").iterdir()}
    assert "separation.png" in names
    assert "confusion.png" not in names
    assert "Rank-1 %–" in page.text


def test_one_task_on_one_client_works(tmp_path: Path, fabricate) -> None:
    page = Page(write_report([fabricate(tmp_path, num_tasks=1, num_clients=1, num_rounds=1)]))
    assert "No AUROC, for want of test positives or negatives: s1." in page.text
    assert "Data: 1 task and 6 training images on 1 client." in page.text


def test_a_thousand_tasks_on_a_thousand_clients_stay_legible(tmp_path: Path, fabricate) -> None:
    page = write_report([fabricate(tmp_path, num_tasks=1000, num_clients=1000, num_rounds=3, images_per_task=1)])
    assert page.stat().st_size < 3_000_000
    for file in (tmp_path / "figures").iterdir():
        height, width = imread(file).shape[:2]
        assert max(height, width) < 2600


def test_no_run_and_no_config_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run directory, got none"):
        write_report([])
    with pytest.raises(ValueError, match=r"must hold config\.yaml"):
        write_report([tmp_path])
    assert not (tmp_path / "figures").exists()


def test_importing_the_report_is_cheap_and_never_needs_torch() -> None:
    code = (
        "import sys, mtl.report, mtl.report.tables; assert 'matplotlib' not in sys.modules;"
        "import mtl.report.page; assert not {'torch', 'lightning', 'pytorch_lightning', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "MPLBACKEND"
    }  # with it matplotlib is made to take it
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_beyond_six_groups_the_figures_of_the_rest_are_said_to_be_left_out(tmp_path: Path) -> None:
    for index in range(8):
        (tmp_path / f"run{index}").mkdir()
        (tmp_path / f"run{index}" / "config.yaml").write_text(f"width: {index}\n")
    page = Page(write_report(sorted(tmp_path.iterdir())))
    assert "8 runs in 8 groups" in page.text
    assert "The figures of 2 more groups are left out" in page.text
