from pathlib import Path

import pytest

from mtl.cli.hydra_errors import explain
from mtl.cli.launch import launch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trunk=resnet18"], ", vgg, got resnet18; did you mean resnet?"),
        (["+experiment=orl_id"], "got orl_id; did you mean orl_iid?"),
        (["experiment=orl"], "an experiment is added by a plus: +experiment=orl\n"),
        (["+experiments=orl"], "unknown option experiments; did you mean experiment?"),
        (["round=1"], "unknown option round; did you mean rounds?\nthe configuration has the keys data, "),
        (
            ["loss=bce", "loss.scal=1"],
            "unknown option loss.scal; did you mean scale?\nloss has the keys positive_weight, scale\n",
        ),
        (["+experiment=synthetic", "partition.num_clients=9"], "unknown option partition.num_clients\n"),
        (["partition.num_clients=2.5"], "partition.num_clients must be a whole number, got 2.5\n"),
        (["partition.num_clients=null"], "partition.num_clients must not be null\n"),
        (["loss.margin=[.4]"], "loss.margin must be a number, got [0.4]\n"),
        (["balancer=fixed", "balancer.weights=[1,a,2]"], "balancer.weights[1] must be a number, got a\n"),
        (["rounds="], "rounds must be a whole number, got nothing\n"),
        (["profile=perhaps"], "profile must be true or false, got perhaps\n"),
        (["=3"], "options are written NAME=VALUE, got '=3'\n"),
        (["rounds"], "options are written NAME=VALUE, got 'rounds'\n"),
    ],
)
def test_a_wrong_word_is_named_with_what_was_expected(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch(words) == 2
    printed = capfd.readouterr().err
    assert message in printed
    assert "Config search path" not in printed
    assert "object_type" not in printed
    assert not list(tmp_path.iterdir())


def test_only_an_error_of_its_path_is_one_of_the_output_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "now"
    full, other = (
        OSError(28, "full", str(run_dir / "metrics.csv")),
        OSError(2, "none", str(tmp_path / "runs" / "before" / "a.pt")),
    )
    assert explain(full, [], run_dir) == f"output_dir cannot be used: {full}"
    assert explain(other, [], run_dir) == str(other)
    # Before there is a run directory, its place is known from the words.
    made = OSError(17, "exists", str(tmp_path / "runs"))
    assert explain(made, [f"output_dir={run_dir}"]) == f"output_dir cannot be used: {made}"
    assert explain(other, [f"output_dir={run_dir}"]) == str(other)


def test_the_words_are_not_printed_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch([f"output_dir={tmp_path / 'run'}", "mode=3"]) == 2
    modes = "federated, centralised, local, single_task, detection"
    assert capfd.readouterr().err == f"mtl: error: mode must be one of {modes}, got 3\n"
