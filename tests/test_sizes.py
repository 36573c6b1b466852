"""Functions, signatures and files stay small enough to be read at once."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl.run.members import PARTIAL, WHOLE

ROOT = Path(__file__).parents[1] / "mtl"
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 60, 8
FILES = sorted(ROOT.rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """The functions of a file by their name, Class.name for those of a class."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = {child: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield f"{owners[node]}.{node.name}" if node in owners else node.name, node


def num_lines(function: Function) -> int:
    """Lines of a function without its decorators and its docstring."""
    first = function.body[0]
    is_docstring = ast.get_docstring(function) is not None
    return count(function) - (count(first) if is_docstring else 0)


def count(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def num_parameters(function: Function) -> int:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def member_functions() -> set[tuple[str, str]]:
    """File and name of the functions and classes that build a member of a group: their parameters are the options of a run."""
    built: set[Any] = set()
    for members in (*WHOLE.values(), *PARTIAL.values()):
        built |= {member[0] if isinstance(member, tuple) else member for member in members.values()}
    return {
        (inspect.getsourcefile(target) or "", f"{target.__name__}.__init__" if inspect.isclass(target) else target.__name__)
        for target in built
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_at_most_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE


def test_a_function_has_at_most_60_lines() -> None:
    longer = [
        f"{path}: {name}, {num_lines(node)}" for path in FILES for name, node in functions(path) if num_lines(node) > MAX_FUNCTION
    ]
    assert not longer


def test_a_signature_has_at_most_8_parameters() -> None:
    members = member_functions()
    longer = [
        f"{path}: {name}, {num_parameters(node)}"
        for path in FILES
        for name, node in functions(path)
        if num_parameters(node) > MAX_PARAMETERS and (str(path), name) not in members
    ]
    assert not longer
