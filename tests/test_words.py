"""Words as people type them, and as Hydra reads them."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mtl.words import advice, readable


def value(word: str) -> Any:
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    "path",
    [
        "/data/Été",
        "/data/名前",
        "it's",
        "a&b",
        "run#1",
        "a=b",
        "faces (1)",
        "/a b/c",
        "100%",
        "a\\'b",
        "end\\",
        "x;y",
        "a!b",
        "back\\slash é",
    ],
)
def test_a_path_is_read_as_it_stands(path: str) -> None:
    [word] = readable([f"data.root={path}"])
    assert value(word) == path


def test_home_is_found_bare_and_in_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in ("data.root=~/faces", 'data.root="~/faces"', "data.root='~/faces'"):
        assert value(readable([word])[0]) == f"{tmp_path}/faces"


def test_what_hydra_reads_is_left_alone() -> None:
    words = ["seed=0", "-m", "~data", "loss.gamma=[1,2]", "name='a b'", "fleet.mix={a:1}", "+x=null", "rounds=", "data.root=[a"]
    assert readable(words) == words


def test_a_sweep_is_over_paths() -> None:
    assert readable(["data.root=/é,/b", "seed=range(3)"], sweep=True) == ["data.root='/é','/b'", "seed=range(3)"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [("--rounds=1", "without dashes: rounds=1"), ("rounds", "NAME=VALUE, got 'rounds'"), ("a=[é", "two pairs of quotes")],
)
def test_what_cannot_be_read_comes_with_advice(word: str, hint: str) -> None:
    assert hint in advice(["seed=0", word])
