"""What a run records of its code, its command and its machine."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtl.run import environment as environment_module
from mtl.run import provenance
from mtl.run.environment import COMMAND, environment, write_environment
from mtl.run.provenance import Code, read_code


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True, capture_output=True
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository of its own, which ignores `.cache`."""
    folder = tmp_path / "repository" / "mtl"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("first = 1\n")
    (folder.parent / ".gitignore").write_text(".cache\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-qm", "first")
    return folder


def state(package: Path) -> Code:
    read_code.cache_clear()
    return read_code(package)


def test_new_and_changed_code_is_seen_and_ignored_files_are_not(package: Path) -> None:
    (package / ".cache").write_text("ignored")
    (package.parent / "thesis.pdf").write_text("no code")
    clean = state(package)
    assert (len(clean.commit or ""), clean.dirty, clean.untracked, clean.reason) == (40, False, {}, None)
    (package / "my method.py").write_text("12345")
    (package.parent / "experiments").mkdir()
    (package.parent / "experiments" / "mine.yaml").write_text("")
    assert state(package).untracked == {"mtl/my method.py": 5, "experiments/mine.yaml": 0}
    assert state(package).dirty
    git(package.parent, "add", ".")
    (package / "__init__.py").write_text("second = 2\n")
    changed = state(package)
    assert b"-first = 1\n+second = 2\n" in changed.patch
    assert b"my method.py" in changed.patch  # added, and in no commit
    assert (changed.dirty, changed.untracked, changed.commit) == (True, {}, clean.commit)


def test_no_commit_of_somebody_elses_repository_is_recorded(package: Path) -> None:
    installed = package.parent / ".cache" / "mtl"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    code = state(installed)
    assert (code.commit, code.dirty) == (None, False)
    assert code.reason == "mtl is in no commit of the git repository that it is in"


def test_without_a_repository_or_without_git_the_reason_is_said(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "site-packages" / "mtl"
    alone.mkdir(parents=True)
    assert state(alone) == Code(reason="mtl is not in a git repository")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state(package) == Code(reason="git is not installed")
    (tmp_path / "git").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(30)\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setattr(provenance, "PATIENCE", 0.2)
    start = time.monotonic()
    assert state(package) == Code(reason="git took longer than 0.2 s")
    assert time.monotonic() - start < 5


def test_many_untracked_files_and_a_huge_patch_are_cut_and_said(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (package / f"{number}.bin").write_bytes(b"x" * number)
    (package / "__init__.py").write_text("many\n" * 1000)
    monkeypatch.setattr(provenance, "LISTED", 3)
    monkeypatch.setattr(provenance, "LONGEST_PATCH", 100)
    code = state(package)
    assert (code.untracked, len(code.patch)) == ({"mtl/0.bin": 0, "mtl/1.bin": 1, "mtl/2.bin": 2}, 100)
    assert code.reason is not None
    assert "2 more untracked files are not listed; the patch has" in code.reason


def test_a_recorded_command_can_be_pasted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMAND, raising=False)
    assert shlex.split(environment()["command"]) == sys.orig_argv
    monkeypatch.setenv(COMMAND, shlex.join(["mtl", "train", "data.root=a b", "loss.gamma=[1,2]"]))
    recorded = environment()
    assert recorded["command"] == "mtl train 'data.root=a b' 'loss.gamma=[1,2]'"
    assert recorded["cpu"]
    assert recorded["versions"]["torch"]
    assert isinstance(recorded["gpus"], list)


def test_a_resumed_run_adds_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_module, "read_code", lambda: Code("a" * 40, b"patch"))
    write_environment(tmp_path, None, {"seed": 3, "data": "d"})
    first = json.loads((tmp_path / "environment.json").read_text())
    assert (first["seed"], first["data"], first["dirty"], first["untracked"]) == (3, "d", True, None)
    assert (tmp_path / "changes.patch").read_bytes() == b"patch"
    monkeypatch.setattr(environment_module, "read_code", lambda: Code("b" * 40, b"other"))
    write_environment(tmp_path, 7, {"seed": 3, "data": "d"})
    second = json.loads((tmp_path / "environment.json").read_text())
    (resumed,) = second.pop("resumed")
    assert second == first
    assert (resumed["round"], resumed["commit"]) == (7, "b" * 40)
    assert not {"seed", "versions", "command"} & set(resumed)
    assert (tmp_path / "changes-7.patch").read_bytes() == b"other"
    monkeypatch.setattr(environment_module, "read_code", lambda: Code("c" * 40))
    write_environment(tmp_path, None, {"seed": 4})
    assert not list(tmp_path.glob("*.patch"))
