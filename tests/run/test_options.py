"""Unknown options and values of a wrong type are refused before anything is built."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mtl.run.config import check_keys, compose
from mtl.run.options import check_options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("subtasks.classes=cat", r"subtasks.classes must be a list of words or whole numbers or null, got 'cat'"),
        ("subtasks=groups subtasks.mapping={a:cat}", r"subtasks.mapping.a must be a list of words or whole numbers, got 'cat'"),
        ("trunk.channels=8", r"trunk.channels must be a list of whole numbers, got 8"),
        ("trunk.channels=[8,a]", r"trunk.channels\[1\] must be a whole number, got 'a'"),
        ("trunk.channels=[8,true]", r"trunk.channels\[1\] must be a whole number, got true"),
        ("data.image_size=[8]", r"data.image_size must be a list of 2 whole numbers or null, got \[8\]"),
        ("widths=levels widths.shares=half", r"widths.shares must be a list of numbers or null, got 'half'"),
        ("loss=focal loss.gamma=high", r"loss.gamma must be a number or a list of numbers, got 'high'"),
        ("architecture=grouped architecture.groups=2.5", r"a whole number or a list of lists of whole numbers or words, got 2.5"),
        ("fleet=mix fleet.mix=phones", r"fleet.mix must be a mapping \{NAME: VALUE\} or null, got 'phones'"),
        (
            "+client.learning_rat=.5",
            r"unknown option client.learning_rat; did you mean learning_rate\?; client has learning_rate, ",
        ),
        ("balancer=fixed", r"balancer.weights must be given"),
        ("+engine.blok=3", r"unknown option engine.blok; did you mean block\?"),
    ],
)
def test_a_wrong_kind_is_told_with_its_place(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(compose(words.split(" ")))


def test_every_option_may_have_its_default() -> None:
    config = compose()
    before = OmegaConf.to_container(config)
    check_options(config)
    assert OmegaConf.to_container(config) == before


def test_numbers_name_classes_and_stay_places_where_both_may_be() -> None:
    config = compose(["subtasks.classes=[1,2,10]", "architecture=grouped", "architecture.groups=[[1,2],[cat]]"])
    check_options(config)
    assert config.subtasks.classes == [1, 2, 10]
    assert config.architecture.groups == [[1, 2], ["cat"]]
    mapping = compose(["subtasks=groups", "subtasks.mapping={low:[1,2],high:[10]}"])
    check_options(mapping)
    assert mapping.subtasks.mapping == {"low": [1, 2], "high": [10]}


@pytest.mark.parametrize(
    ("word", "near"), [("+rouds=50", "rounds"), ("+seeed=3", "seed"), ("+experiments=orl_iid", "experiment")]
)
def test_an_unknown_key_at_the_top_is_told_with_the_nearest(word: str, near: str) -> None:
    name = word[1:].partition("=")[0]
    with pytest.raises(ValueError, match=rf"unknown option {name}; did you mean {near}\?; the configuration has the keys data, "):
        check_keys(compose([word]))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("engine=3", "engine must be a group of options, got 3"),
        ("tracking=null", "tracking must be a group of options, got None"),
        ("name=[a]", r"name must be a word or null, got \['a'\]"),
        ("weights=[a]", "weights must be a word or null"),
    ],
)
def test_a_wrong_kind_at_the_top_is_told(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_keys(compose([word]))


def test_a_number_at_the_top_is_a_word() -> None:
    config = compose(["name=3", "weights=7"])
    check_keys(config)
    assert (config.name, config.weights) == ("3", "7")


def test_a_broken_file_of_the_user_stops_no_run_but_its_own(tmp_path: Path) -> None:
    from mtl.run.config import register

    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "broken.yaml").write_text("a: [1")
    (folder / "notes.yaml").write_text("- 1")
    (folder / "mine.yaml").write_text("rounds: 3")
    (folder / "orl_iid.yaml").write_text("rounds: 4")
    assert compose(["+experiment=mine"], experiments=folder).rounds == 3
    assert compose(["+experiment=orl_iid"], experiments=folder).rounds == 4  # the user's own comes first
    assert sorted(register(folder)) == ["broken", "notes"]
    assert "broken.yaml cannot be used" in register(folder)["broken"]
    register.cache_clear()
    assert compose(["+experiment=orl_iid"]).rounds != 4
