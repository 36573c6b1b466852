"""What a named experiment sets under a group, and the members that are chosen in place of its own."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from mtl.cli.main import main
from mtl.run.config import check_keys, compose, register
from mtl.run.experiment_keys import left_out, member_words, split_experiment
from mtl.run.members import DEFAULTS, PARTIAL, WHOLE
from mtl.run.named_experiments import experiment_files
from mtl.run.options import check_options
from tests.cli.test_cli import QUICK, words

MINE = """\
# A user's own.
defaults:
  - override /loss: bce
loss:
  positive_weight: 2.0
  scale: 3.0
client:
  head_scale: 1.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an experiment."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "experiments" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(MINE)
    return file


def loss_of(*words: str) -> dict[str, Any]:
    """The options of the loss."""
    config = compose(["+experiment=mine", *words], experiments=Path("experiments"))
    return {str(key): value for key, value in config.loss.items() if not str(key).startswith("_")}


def refusal(config: DictConfig) -> ValueError | None:
    try:
        check_options(config)
    except ValueError as error:
        return error
    return None


def members(place: str) -> list[str]:
    return list((WHOLE | PARTIAL)[place.partition("@")[0]])


@pytest.mark.parametrize("name", experiment_files(None))
def test_every_member_takes_what_is_left_of_an_experiment(name: str) -> None:
    register()
    store = ConfigStore.instance()
    for place, word in zip(split_experiment(name), member_words([f"+experiment={name}"]), strict=True):
        group, _, path = place.partition("@")
        room, _, reference = word[1:].partition("@_global_=")
        for member in members(place):
            choices = OmegaConf.create({"defaults": [{"experiment": name}], place: member, "taken": reference})
            added = store.load(f"{room}/{choices.taken}.yaml").node
            OmegaConf.merge(store.load(f"{group}/{member}.yaml").node, OmegaConf.select(added, path or group) or {})


@pytest.mark.slow
@pytest.mark.parametrize("name", experiment_files(None))
def test_any_member_can_be_chosen_in_place_of_an_experiments_own(name: str) -> None:
    register()
    places = [place for place in split_experiment(name) if "@" not in place]
    for number in range(max((len(members(place)) for place in places), default=0)):
        chosen = [f"{place}={members(place)[number % len(members(place))]}" for place in places]
        config = compose([f"+experiment={name}", *chosen])
        check_keys(config)
        assert refusal(config) is None or "must be given" in str(refusal(config)), chosen  # by the user, whatever the experiment


def test_the_keys_that_another_member_lacks_fall_away(mine: Path) -> None:
    assert loss_of() == {"positive_weight": 2.0, "scale": 3.0}
    assert loss_of("loss=bce") == loss_of()
    assert loss_of("loss=focal") == {"gamma": 2.0, "alpha": 0.25}
    assert loss_of("loss=sphereface2")["scale"] == 3.0
    assert loss_of("loss=bce", "loss.positive_weight=5") == {"positive_weight": 5, "scale": 3.0}
    assert compose(["+experiment=mine", "loss=focal"]).client.head_scale == 1.0


def test_a_value_of_another_type_falls_away(mine: Path) -> None:
    mine.write_text("split:\n  val: 0.5\n")
    register.cache_clear()
    folder = mine.parent
    assert compose(["+experiment=mine", "split=fractions"], experiments=folder).split.val == 0.5
    assert (
        compose(["+experiment=mine", "split=per_class"], experiments=folder).split.val == compose(["split=per_class"]).split.val
    )


def test_a_group_inside_of_a_member_is_one_too() -> None:
    config = compose(["+experiment=faces_together", "loss@loss.classes=focal"])
    assert "weight" not in config.loss.classes
    assert config.loss.attributes.positive_weight == "balanced"
    assert compose(["+experiment=faces_together"]).loss.classes.weight == 6.0
    plain = compose(["+experiment=orl_peers", "trunk=lenet", "server=mean"])
    assert plain.trunk == compose(["trunk=lenet"]).trunk
    other = compose(["+experiment=orl_peers", "trunk@trunk.trunks.plain=lenet"])
    assert other.trunk.trunks.plain == compose(["trunk=lenet"]).trunk
    assert other.trunk.shares == {"plain": 4, "light": 4}


def test_an_experiment_on_top_of_others_has_their_keys(mine: Path) -> None:
    mine.with_name("more.yaml").write_text("defaults:\n  - mine\nloss:\n  scale: 9.0\n")
    config = compose(["+experiment=more"], experiments=mine.parent)
    assert (config.loss.positive_weight, config.loss.scale) == (2.0, 9.0)
    several = compose(["+experiment=[mine,orl_iid]", "loss=focal"], experiments=mine.parent)
    assert (several.name, several.loss.gamma, several.client.head_scale) == ("orl_iid", 2.0, 1.0)


def test_what_falls_away_is_said_by_name() -> None:
    register()
    chosen: dict[str, Any] = dict(DEFAULTS) | {"loss": "focal", "partition": "iid", "assignment": "random", "data": "celeba"}
    assert left_out(["+experiment=celeba_attributes"], chosen) == [
        "experiment celeba_attributes sets partition.alpha, which partition=iid does not take: left out",
        "experiment celeba_attributes sets loss.positive_weight, which loss=focal does not take: left out",
    ]
    assert left_out(["seed=0"], chosen) == []


def test_a_wrong_key_of_the_experiments_own_member_and_of_the_user_is_refused(
    mine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "+experiment=mine", "loss=focal", "loss.positive_weight=2", "output_dir=run"]) == 2
    assert "unknown option loss.positive_weight" in capfd.readouterr().err
    mine.write_text(MINE.replace("positive_weight", "positive_wait"))
    register.cache_clear()
    assert main(["train", "+experiment=mine", "output_dir=run"]) == 2
    assert "unknown option loss.positive_wait; did you mean positive_weight?" in capfd.readouterr().err
    mine.write_text("augmentation:\n  flip: 3\n")
    register.cache_clear()
    assert main(["train", "+experiment=mine", "output_dir=run"]) == 2
    assert "augmentation.flip must be true or false, got 3" in capfd.readouterr().err


def test_each_job_of_a_sweep_has_the_keys_that_its_member_takes(
    mine: Path, class_folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = words(class_folders, tmp_path / "grid", "-m", "+experiment=mine", "loss=bce,focal", "rounds=1", *QUICK)
    assert main(arguments) == 0
    losses = {path.parent.name[:9]: OmegaConf.load(path).loss for path in (tmp_path / "grid").glob("*/config.yaml")}
    assert losses["loss=bce-"].positive_weight == 2.0
    assert "positive_weight" not in losses["loss=foca"]
    said = "experiment mine sets loss.positive_weight, loss.scale, which loss=focal does not take: left out"
    logs = {path.parent.name[:9]: path.read_text() for path in (tmp_path / "grid").glob("*/log.txt")}
    assert said in logs["loss=foca"]
    assert "left out" not in logs["loss=bce-"]
