"""What `mtl train --help`, `mtl train --cfg` and `mtl experiments` print."""

import inspect
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from mtl.balancing.cagrad import CAGrad
from mtl.cli.help import WIDTH, help_text, key_options, meanings, member_line, member_options, members, prose, shown, summary
from mtl.cli.main import main
from mtl.cli.meanings import GROUPS, KEYS, PRESETS
from mtl.run.config import compose
from mtl.run.members import DEFAULTS
from mtl.run.named_experiments import FOLDER, describe, experiment_files
from mtl.run.settings import OPTIONS, top_level

MEMBERS = [(group, name) for group in DEFAULTS for name in members(group)]
DOC = """Sort images by class (Li et al. 2020), then deal them out. More of it.

    Prose stays. Raises ValueError where alpha is wrong.

    Args:
        num_clients: clients, see
            `client`; seed: is not described here.
        alpha: in (0, 1], None for none.
        other: no option.

    Closing words. seed: no description outside of the section.

    Returns:
        seed: not an argument.

    Raises:
        ValueError: alpha: is not above zero.
    """


def printed(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capfd.readouterr().out


def test_the_summary_is_the_first_sentence() -> None:
    assert summary(DOC) == "Sort images by class (Li et al. 2020), then deal them out."
    assert summary("One\n    line") == "One line"
    assert summary(None) == ""


def test_meanings_are_read_from_the_section_of_arguments() -> None:
    assert meanings(DOC, ["num_clients", "seed", "alpha", "gamma"]) == {
        "num_clients": "clients, see `client`; seed: is not described here",
        "alpha": "in (0, 1], None for none",
    }


def test_prose_is_what_is_left_without_sections_and_errors() -> None:
    assert prose(DOC) == (
        "Sort images by class (Li et al. 2020), then deal them out. More of it.\n\nProse stays.\n\n"
        "Closing words. seed: no description outside of the section."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ((56, 46), "[56,46]"), ({"a": 0.5}, "{a:0.5}"), ("???", "... (must be given)"), (3, "3")],
)
def test_a_default_is_shown_as_one_would_type_it(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(("group", "name"), MEMBERS)
def test_a_member_has_a_line_and_its_options_have_meanings(group: str, name: str) -> None:
    line = member_line(group, name)
    assert line.endswith((".", "?"))
    assert len(line) + len(max(members(group), key=len)) + 5 <= WIDTH
    assert [option.name for option in member_options(group, name) if not option.meaning] == []


def test_groups_keys_and_presets_are_those_of_the_configuration() -> None:
    assert set(GROUPS) == set(DEFAULTS)
    assert set(KEYS) == {field.name for field in fields(top_level())} - set(DEFAULTS) - {"defaults", "hydra"}
    for group in DEFAULTS:
        targets = Counter(target for target, _ in members(group).values())
        shared = {name for name, (target, _) in members(group).items() if targets[target] > 1}
        assert set(PRESETS.get(group, {})) == shared


def test_defaults_are_those_of_the_composed_configuration() -> None:
    config = compose()
    options = [option for group, name in DEFAULTS.items() for option in member_options(group, name)]
    options += [option for key in KEYS for option in key_options(key)]
    for option in options:
        parent, _, key = option.name.rpartition(".")
        node = OmegaConf.to_container(OmegaConf.select(config, parent) if parent else config, resolve=False)
        assert isinstance(node, dict)
        assert option.default == shown(node[key])
    for group in (*DEFAULTS, *OPTIONS):
        named = {option.name for option in options if option.name.startswith(f"{group}.")}
        assert named == {f"{group}.{key}" for key in config[group] if not key.startswith("_")}


def test_the_help_names_all_groups_members_and_keys_and_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    text = printed(capfd, "train", "--help")
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    for group, name in MEMBERS:
        star = "*" if DEFAULTS[group] == name else " "
        assert f"{group}: {GROUPS[group]}" in lines
        assert any(line.startswith(f"{star} {name} ") and line.endswith(member_line(group, name)) for line in lines)
    for key in KEYS:
        for option in key_options(key):
            assert f"\n  {option.name}={option.default}" in text
    for noise in ("_target_", "_partial_", "_convert_", "edge: devices", "Hydra", "???"):
        assert noise not in text
    assert printed(capfd, "train", "-h") == text


def test_the_help_of_training_builds_no_configuration_and_imports_no_lightning() -> None:
    code = (
        "import sys; from mtl.cli.main import main; from hydra._internal.config_repository import ConfigRepository; "
        "ConfigRepository.__init__ = None; "
        "main(['train', '--help']); print('pytorch_lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_help_of_a_group_has_its_members_alone(capfd: pytest.CaptureFixture[str]) -> None:
    text = printed(capfd, "train", "--help", "balancer")
    assert all(f" {name} " in text for name in members("balancer"))
    assert "sphereface2" not in text
    assert printed(capfd, "train", "--help=balancer") == text
    assert printed(capfd, "train", "balancer.c=0.1", "-h") == text


def test_the_help_of_a_member_has_its_docstring_its_equation_and_its_options(capfd: pytest.CaptureFixture[str]) -> None:
    text = printed(capfd, "train", "--help", "balancer=cagrad")
    assert summary(inspect.getdoc(CAGrad)) in text
    assert "max_d min_i g_i . d  subject to  |d - g_0| <= c |g_0|" in text
    assert "  balancer.c=0.4   (a number)\n      how far the update may be from the mean gradient" in text
    assert "  balancer.preference=null   (a list of numbers or null)\n      one number > 0 per task" in text


@pytest.mark.parametrize(("group", "name"), MEMBERS)
def test_the_help_of_every_member_is_readable(group: str, name: str) -> None:
    text = help_text([f"{group}={name}"])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "_target_" not in text
    assert "Raises" not in text


def test_a_member_inside_of_a_member_is_named_with_the_way_to_change_it() -> None:
    assert "server.balancer=cagrad   (a member of balancer)" in (text := help_text(["server=conflict_averse"]))
    assert "balancer@server.balancer=NAME takes another one" in text
    assert "loss@loss.classes=NAME takes another one" in help_text(["loss=by_kind"])


@pytest.mark.parametrize("key", OPTIONS)
def test_the_help_of_a_key_with_options_shows_these(key: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = printed(capfd, "train", "--help", key)
    for option in key_options(key):
        assert f"  {option.name}={option.default}   ({option.kind})\n      {option.meaning[:40]}" in text


def test_the_help_of_a_plain_key_shows_it_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(capfd, "train", "--help", "rounds") == "  rounds=80   (a whole number)\n      number of rounds\n"
    assert "weights=null   (a word or null)" in printed(capfd, "train", "--help", "weights")


@pytest.mark.parametrize(
    ("topic", "messages"),
    [
        ("balancr", ["no group or key 'balancr'", "did you mean balancer?", "groups: data, ", "keys: mode, "]),
        ("balancer=cagard", ["balancer has no member 'cagard'", "did you mean cagrad?", "pcgrad"]),
        ("edge", ["no group or key 'edge'"]),
    ],
)
def test_an_unknown_word_lists_what_there_is(topic: str, messages: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", topic]) == 2
    errors = capfd.readouterr().err
    for message in messages:
        assert message in errors


@pytest.mark.parametrize("arguments", [["--cfg", "job", "rounds=3"], ["rounds=3", "--cfg=job"], ["-c", "job", "rounds=3"]])
def test_cfg_prints_the_composed_configuration_and_leaves_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed(capfd, "train", *arguments)
    assert yaml.safe_load(text) == OmegaConf.to_container(compose(["rounds=3"]), resolve=False)
    assert list(tmp_path.iterdir()) == []


def test_experiments_are_listed_with_a_line_each_those_here_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("\n# My own faces.\n# More.\nname: mine\n")
    (tmp_path / "experiments" / "orl.yaml").write_text("name: orl\n")
    lines = printed(capfd, "experiments").splitlines()
    said = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert set(said) == {path.stem for path in FOLDER.glob("*.yaml")} | {"mine"}
    assert said["mine"] == "My own faces."
    assert "no comment at the top of" in said["orl"]
    assert printed(capfd, "experiments", "orl") == "name: orl\n"
    assert printed(capfd, "train", "--help", "experiment").splitlines() == lines


@pytest.mark.parametrize("path", experiment_files(None).values(), ids=lambda path: path.stem)
def test_every_experiment_says_what_it_is_in_a_line(path: Path) -> None:
    assert describe(path).endswith(".")
    assert len(describe(path)) <= WIDTH - 22


def test_an_unknown_experiment_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments", "orl_idd"]) == 2
    assert "no experiment 'orl_idd'; did you mean orl_iid?; choose from celeba_attributes" in capfd.readouterr().err


def test_the_experiments_are_in_the_help_of_all_commands_and_need_no_torch() -> None:
    code = (
        "import sys; from mtl.cli.main import main; main(['--help']); main(['experiments']); "
        "print({'torch', 'hydra'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mtl experiments" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
