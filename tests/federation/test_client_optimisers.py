"""Every optimiser of the clients gives the same result in every backend, in every mode, and over a resume."""

from pathlib import Path

import pytest
import torch

from mtl.federation.algorithms.local_adam import LocalAdam, LocalAdamW
from mtl.federation.algorithms.local_optimizer import LocalOptimizer
from mtl.federation.algorithms.local_sgd import LocalSGD
from tests.federation.test_backends import LOOP, STACKED, assert_close, model_of, three_rounds, uneven
from tests.run.test_train import kill_after, numbers, small, train, without_time

CLIENTS = {
    "nesterov": LocalSGD(learning_rate=0.05, nesterov=True),
    "clipped": LocalSGD(learning_rate=0.05, clip=0.2),
    "adam": LocalAdam(learning_rate=0.01, weight_decay=0.01, clip=0.5),
    "adamw": LocalAdamW(learning_rate=0.01, beta1=0.8, beta2=0.9, head_scale=1.0),
}


@pytest.mark.parametrize("keep", ["nothing", "heads"])
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_loop_and_stacked_agree(client: LocalOptimizer, keep: str) -> None:
    data = uneven([5, 1, 7, 3], 1)
    model = model_of("dropout", data, torch.float64)
    one = three_rounds(LOOP, data, model, client=client, keep=keep)
    assert_close(one, three_rounds(STACKED, data, model, client=client, keep=keep), 1e-10)
    assert_close(one, three_rounds(lambda training: STACKED(training, block=2), data, model, client=client, keep=keep), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_a_compiled_step_agrees(client: LocalOptimizer) -> None:
    data = uneven([5, 1, 7, 3], 1)
    model = model_of("flat", data, torch.float64)
    compiled = three_rounds(lambda training: STACKED(training, compiled=True), data, model, client=client)
    assert_close(three_rounds(LOOP, data, model, client=client), compiled, 1e-10)


@pytest.mark.parametrize("mode", ["federated", "centralised", "local"])
@pytest.mark.parametrize("words", [["client=adam", "client.clip=1"], ["client=sgd", "client.nesterov=true"]])
def test_a_resumed_run_ends_as_one_never_interrupted(class_folders: Path, tmp_path: Path, mode: str, words: list[str]) -> None:
    config = small(class_folders, f"mode={mode}", *words, "rounds=4", "checkpoint_every=1")
    whole = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
