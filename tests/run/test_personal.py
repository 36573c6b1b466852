"""Runs with a model for each client: what their directories hold, what is loaded from them, and what is refused."""

import csv
from pathlib import Path

import pytest
import torch

from mtl.run.build import build_data
from mtl.run.load import load_run
from mtl.run.train import train
from tests.run.test_train import kill_after, numbers, small, without_time

RUN = ["sampling.dropout=0.3", "partition=iid", "assignment=all", "partition.num_clients=3"]
KINDS = ("accuracy", "worst_tenth_accuracy", "worst_client_accuracy")


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["algorithm=ditto"], ["global", "personal"]),
        (["algorithm=fedrep"], ["global", "personal"]),
        (["algorithm=finetune", "keep=heads"], ["global", "personal", "finetuned"]),
        (["algorithm=finetune"], ["global", "finetuned"]),
    ],
)
def test_global_personal_and_fine_tuned_accuracy_are_told_apart(
    class_folders: Path, tmp_path: Path, words: list[str], models: list[str], backend: str
) -> None:
    summary = train(small(class_folders, *words, *RUN, f"engine.backend={backend}"), tmp_path / "run")
    with (tmp_path / "run" / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["client"] for row in rows] == ["0", "1", "2"]
    assert {name.removesuffix("_accuracy") for name in rows[0] if name.endswith("_accuracy")} == set(models)
    for model in models:
        of_clients = sorted(float(row[f"{model}_accuracy"]) for row in rows)
        expected = [sum(of_clients) / 3, of_clients[0], of_clients[0]]
        assert [summary[f"test/{model}/{kind}"] for kind in KINDS] == pytest.approx(expected)


def test_a_run_that_keeps_nothing_on_clients_tests_none_of_them(class_folders: Path, tmp_path: Path) -> None:
    summary = train(small(class_folders), tmp_path / "run")
    assert not (tmp_path / "run" / "clients.csv").exists()
    assert "test/global/accuracy" not in summary


def test_the_model_of_a_ditto_client_is_its_personal_one(class_folders: Path, tmp_path: Path) -> None:
    config = small(class_folders, "algorithm=ditto", "split.val=0")
    summary = train(config, tmp_path / "run")
    both, own, other = (load_run(tmp_path / "run", client=client) for client in (None, 0, 1))
    assert own.trained_tasks != other.trained_tasks
    assert not torch.equal(own.model.params()["trunk.features.0.weight"], both.model.params()["trunk.features.0.weight"])
    data, right = build_data(config), []
    for run, client in ((own, 0), (other, 1)):
        tasks = data.assignment[client].nonzero().flatten()
        test = data.split.test[torch.isin(data.identity[data.split.test], tasks)]
        best = tasks[run.objective.scores(run.model, data.images[test])[:, tasks].argmax(1)]
        right.append(float((best == data.identity[test]).double().mean()))
    assert summary["test/personal/accuracy"] == pytest.approx(sum(right) / 2)


@pytest.mark.parametrize("name", ["ditto", "fedrep", "finetune", "pfedme"])
def test_a_resumed_run_ends_as_one_never_interrupted(class_folders: Path, tmp_path: Path, name: str) -> None:
    config = small(class_folders, f"algorithm={name}", *RUN)
    summary = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(summary)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    assert (tmp_path / "cut" / "clients.csv").read_text() == (tmp_path / "whole" / "clients.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["algorithm=ditto", "keep=heads"],
            "algorithm=ditto has a second, whole model on each client: keep must be nothing, got heads",
        ),
        (["algorithm=fedper", "keep=norms"], "algorithm=fedper is keep=heads: keep must be heads, or nothing, .* got norms"),
        (["algorithm=fedbn", "mode=local"], "algorithm=fedbn needs mode=federated, got local"),
        (["algorithm=finetune", "mode=centralised"], "algorithm=finetune needs mode=federated, got centralised"),
        (
            ["algorithm=finetune", "widths=levels", "widths.shares=[1,1,0]"],
            "algorithm=finetune needs clients that train the whole",
        ),
        (["algorithm=ditto", "balancer=moco"], "algorithm=ditto takes gradients at two models, and balancer MoCo remembers"),
        (["algorithm=fedrep", "heads=codes"], "algorithm=fedrep trains heads and trunk in turn: heads must have parameters"),
        (["algorithm=fedbn", "trunk=classic_cnn"], "algorithm=fedbn need a trunk with norm layers"),
    ],
)
def test_what_does_not_go_together_is_refused(class_folders: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(small(class_folders, *words), tmp_path / "run")
