"""The examples of CONTRIBUTING.md and README.md work as they stand there."""

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mtl
from mtl.cli.help import member_line
from mtl.losses.pairs import TaskCounts
from mtl.report import page
from mtl.report.sections import SECTIONS, Section
from mtl.run.config import register
from mtl.run.members import PARTIAL, WHOLE
from mtl.run.train import train
from tests.composing import compose

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n# (mtl/\S+\.py)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"[Ii]n the group\s+`(\w+)`:\s+`\"(\w+)\":\s+(.+?)`")


@dataclass(frozen=True)
class Example:
    """group, name, member: what its line in members.py says; empty for a section of the report."""

    file: str
    code: str
    group: str
    name: str
    member: str


def examples() -> dict[str, Example]:
    """By the name of their file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = {}
    for part in text.split("\n### ")[1:]:
        (block,) = BLOCK.finditer(part)
        line = LINE.search(part)
        group, name, member = line.groups() if line else ("", "", "")
        found[Path(block[1]).stem] = Example(block[1], block[2], group, name, member)
    return found


EXAMPLES = examples()
MEMBERS = [name for name, example in EXAMPLES.items() if example.group]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules, which are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    register.cache_clear()


def imported(name: str, folder: Path) -> ModuleType:
    """The file of an example."""
    (folder / f"example_{name}.py").write_text(EXAMPLES[name].code)
    return importlib.import_module(f"example_{name}")


def test_every_kind_of_component_has_an_example() -> None:
    groups = {example.group for example in EXAMPLES.values()}
    named = [
        "loss",
        "balancer",
        "trunk",
        "heads",
        "architecture",
        "data",
        "partition",
        "sampling",
        "client",
        "algorithm",
        "server",
    ]
    assert groups == {*named, ""}
    assert all((ROOT / example.file).parent.is_dir() for example in EXAMPLES.values())


@pytest.mark.parametrize("name", MEMBERS)
def test_one_file_and_one_line_train(name: str, folder: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, module = EXAMPLES[name], imported(name, folder)
    group = example.group
    member = eval(example.member, vars(module))
    monkeypatch.setitem((WHOLE if group in WHOLE else PARTIAL)[group], example.name, member)
    register.cache_clear()
    data = [] if group == "data" else ["data=folder", f"data.root={class_folders}", "data.image_size=[16,16]"]
    small = ["split.train=4", "rounds=2", "work.steps=2", "tracking.wandb=disabled", "trainer.accelerator=cpu"]
    rest = ["partition.num_clients=2", "assignment=all", "write_report=false", "engine.backend=vmap"]
    words = [f"{group}={example.name}", *data, *small, *rest]
    summary = train(compose(words), folder / "run")
    assert summary["test/auroc"] > 0
    assert member_line(group, example.name).endswith(".")


def test_the_loss_of_the_example(folder: Path) -> None:
    """At z = 0, p = 1/2: both terms are (1/2)^2, the positive one times its weight."""
    loss = imported("brier", folder).Brier(2, positive_weight=[1.0, 2.0])
    positive, negative = loss.terms(torch.zeros(1, 2), TaskCounts(torch.ones(2), torch.ones(2)))
    assert positive.tolist() == [[0.25, 0.5]]
    assert negative.tolist() == [[0.25, 0.25]]


def test_the_balancer_of_the_example(folder: Path) -> None:
    losses, active = torch.tensor([[1.0, 3.0, 9.0], [5.0, 2.0, 1.0]]), torch.tensor([[True, True, False], [True, True, True]])
    weights, state = imported("worst", folder).Worst().weigh({}, losses, None, active, torch.zeros(0))
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert state == {}


def test_the_clients_of_the_example_take_turns(folder: Path) -> None:
    sampling = imported("in_turn", folder).InTurn(cohort=2)
    assert [sampling.draw(5, seed=0, round=round)[1] for round in range(3)] == [[0, 1], [2, 3], [0, 4]]


def test_the_section_of_the_example(folder: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (line,) = re.findall(r"^`(Section\(.*\))`$", text, re.MULTILINE)
    section = eval(line, {"Section": Section, **vars(imported("test_scores", folder))})
    monkeypatch.setattr(page, "SECTIONS", (*SECTIONS, section))
    words = ["data=folder", f"data.root={class_folders}", "data.image_size=[16,16]", "split.train=4", "rounds=1", "work.steps=1"]
    more = ["partition.num_clients=2", "tracking.wandb=disabled", "trainer.accelerator=cpu", "engine.backend=loop"]
    train(compose([*words, *more]), folder / "run")
    assert (folder / "run" / "figures" / "test_scores.png").is_file()
    assert "Test scores" in (folder / "run" / "report.html").read_text()


def readme_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text()
    (part,) = (part for part in text.split("\n## ") if part.startswith("From Python\n"))
    return re.findall(r"^```python\n(.*?)^```", part, re.DOTALL | re.MULTILINE)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def test_the_first_block_of_the_readme_trains_evaluates_and_reports(elsewhere: Path) -> None:
    block = readme_blocks()[0]
    assert len([line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 12
    found: dict[str, Any] = {}
    exec(block, found)
    assert isinstance(found["run"], mtl.Run)
    assert found["run"].summary["test/rank1"] > 0.5
    assert (elsewhere / "runs" / "mine" / "report.html").is_file()


def test_the_second_block_of_the_readme_trains_with_a_trainer_of_the_user(elsewhere: Path) -> None:
    found: dict[str, Any] = {}
    exec(readme_blocks()[1], found)
    assert found["trainer"].current_epoch == 2
    assert found["learner"].test_metrics["auroc"] > 0.5
    assert not (elsewhere / "runs").exists()
