"""Words as people type them, and as Hydra reads them."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mtl.cli.words import advice, check_booleans, readable, split_flags
from mtl.run.config import compose


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


def test_flags_and_their_values_are_told_from_other_words_wherever_they_stand() -> None:
    words = ["rounds=3", "-m", "+a=1", "-i", "defaults", "~b"]
    assert split_flags(words) == (["-m", "--info", "defaults"], ["rounds=3", "+a=1", "~b"])
    assert split_flags(["--cfg=job", "x=1", "-p", "trainer", "--resolve"]) == (
        ["--cfg", "job", "--package", "trainer", "--resolve"],
        ["x=1"],
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "jobs"], "--cfg needs one of job, hydra, all, got jobs"),
        (["--cfg"], "--cfg needs one of job, hydra, all, got none"),
        (["-c", "all", "-m", "seed=0,1"], "of a sweep, --cfg job prints the configurations: write --cfg job, or leave out -m"),
        (["--dry-run", "seed=0,1"], "--dry-run belongs to a sweep: write -m --dry-run"),
        (["--resolve"], "--resolve belongs to --cfg: write --cfg job --resolve"),
        (["--config-name=x"], "--config-name is refused: the configuration is mtl's own and takes no other name"),
        (["-cd", "x"], "-cd is refused: the configuration is mtl's own and takes no other folder"),
        (["--experimental-rerun", "x"], "resume=true output_dir=RUN continues a run"),
        (["--version"], "mtl --version prints that of mtl"),
        (["-sc", "install=bash"], "mtl has no completion of words in a shell"),
        (["--multrun"], "unknown option --multrun; did you mean --multirun?"),
        (["--rounds=1"], "unknown option --rounds=1\noptions are written without dashes: rounds=1"),
    ],
)
def test_a_flag_that_means_nothing_here_is_refused_with_a_sentence(words: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        split_flags(words)
    assert message in str(error.value)


@pytest.mark.parametrize("word", ["augmentation.flip=3", "resume=yes", "mirror=on", "profile=0", "tracking.per_task=1"])
def test_an_option_of_two_values_takes_no_others(word: str) -> None:
    name, _, given = word.partition("=")
    words = ["seed=3", word]
    with pytest.raises(ValueError, match=rf"^{name} must be true or false, got {given}$"):
        check_booleans(words, compose(words))


def test_true_and_false_pass_however_they_are_written() -> None:
    words = [
        "mirror=false",
        "resume=True",
        "profile='true'",
        "augmentation.flip=${mirror}",
        "trunk=lenet",
        "name=yes",
        "seed=1",
    ]
    check_booleans([*words, "+tracking.tags=[a]", "balancer@server.balancer=cagrad"], compose(words))
