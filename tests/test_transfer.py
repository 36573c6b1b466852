"""Transfer in whole runs: frozen parts are neither trained nor sent, the same in every backend and after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtl.data.client_batches import LocalWork
from mtl.data.transforms import Normalise
from mtl.federation.for_each_client import LoopBackend, Training
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.objective import Objective
from mtl.federation.personalise import Bank
from mtl.federation.rounds import Setting, State, run_round
from mtl.federation.sampling import Sampling
from mtl.federation.schedule import Schedule
from mtl.federation.server import FedAvg
from mtl.federation.stacked import StackedBackend
from mtl.learning.checkpoints import read_checkpoint
from mtl.models.hard_sharing import is_head
from mtl.models.transfer import Transfer
from mtl.train import train
from mtl.trained import load_run
from tests.conftest import clone
from tests.federation.test_backends import FACES, assert_close, model_of, uneven
from tests.test_train import kill_after, numbers, small, without_time

TWO_STAGES = ["trunk.channels=[8]", "trunk.width=8"]  # the convolution and the embedding


def rounds_of(make: Any, keep: str, transfer: Transfer, *, rounds: int = 4) -> tuple[list[State], list[int], list[int]]:
    data = uneven([5, 1, 7, 3], 1)
    model = model_of("groupnorm", data, torch.float64)
    transfer.freeze(model)
    client = LocalSGD(learning_rate=0.02, scales=transfer.scales(model))
    training = Training(model, Objective(FACES, Normalise()), client, LocalWork(batch_size=3), 0)
    frozen = transfer.schedule(model)
    server = FedAvg(momentum=0.5)
    setting = Setting(data, training, make(training), Schedule("cosine"), Sampling(), server, num_rounds=5, frozen=frozen)
    bank = Bank(keep, model.params(), data.assignment)
    params = clone(model.params())
    states = [State(params, server.init({k: v for k, v in params.items() if not bank.stays(k)}), bank)]
    sent, received = [], []
    for r in range(rounds):
        state, log = run_round(setting, states[-1], r)
        states.append(state)
        sent.append(log.bytes_up)
        received.append(log.bytes_down)
    return states, sent, received


@pytest.mark.parametrize("keep", ["nothing", "heads", "all"])
@pytest.mark.parametrize(
    "transfer", [Transfer(unfreeze_every=2, decay=0.5), Transfer(trained=1, unfreeze_every=1), Transfer(trained=0)]
)
def test_loop_and_stacked_agree(keep: str, transfer: Transfer) -> None:
    loop, *_ = rounds_of(LoopBackend, keep, transfer)
    stacked, *_ = rounds_of(StackedBackend, keep, transfer)
    assert_close(loop[-1], stacked[-1], 1e-10)


@pytest.mark.parametrize("make", [LoopBackend, StackedBackend])
def test_what_rests_does_not_move_and_is_not_sent(make: Any) -> None:
    states, sent, received = rounds_of(make, "nothing", Transfer(unfreeze_every=1))
    data = uneven([5, 1, 7, 3], 1)
    params = states[0].params
    # Round 1: the heads alone; round 2: the embedding too; from round 3 on everything.
    groups = [[name for name in params if name.startswith(f"trunk.features.{i}.")] for i in (0, 1, 4)]
    assert all(groups)
    moving = [[], groups[2], [*groups[2], *groups[0], *groups[1]], [*groups[2], *groups[0], *groups[1]]]
    for number, names in enumerate(moving):
        before, after = states[number].params, states[number + 1].params
        for name in params:
            moved = not torch.equal(before[name], after[name])
            assert moved == (name in names or is_head(name) or name.startswith("loss.")), (number, name)
        shared = sum(params[name].numel() for name in params if name in names or name.startswith("loss."))
        head = sum(params[name][0].numel() for name in params if is_head(name))
        assert sent[number] == received[number] == 8 * (4 * shared + int(data.assignment.sum()) * head)


def test_rates_scale_the_steps_of_their_parameters() -> None:
    # Without momentum and over one step of one round, the update is the rate times the gradient.
    whole, *_ = rounds_of(LoopBackend, "nothing", Transfer(), rounds=1)
    scaled, *_ = rounds_of(LoopBackend, "nothing", Transfer(decay=0.25), rounds=1)
    client = {name: (s[1].params[name] - s[0].params[name]).norm() for s in (whole,) for name in s[0].params}
    slower = {name: (s[1].params[name] - s[0].params[name]).norm() for s in (scaled,) for name in s[0].params}
    for name, value in client.items():
        factor = 0.25 if name.startswith("trunk.features.0") or name.startswith("trunk.features.1") else 1.0
        assert float(slower[name] / value) == pytest.approx(factor, rel=0.2), name


@pytest.mark.parametrize("mode", ["federated", "centralised", "local"])
def test_a_resumed_run_unfreezes_as_one_never_interrupted(class_folders: Path, tmp_path: Path, mode: str) -> None:
    config = small(
        class_folders,
        f"mode={mode}",
        "transfer=parameters",
        "transfer.unfreeze_every=2",
        "rounds=6",
        "server=fedavgm",
        *TWO_STAGES,
    )
    whole = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=3)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("mode", ["federated", "centralised"])
@pytest.mark.parametrize("trained", [0, 1])
def test_cached_features_change_nothing(class_folders: Path, tmp_path: Path, mode: str, trained: int) -> None:
    words = [f"mode={mode}", "transfer=features", f"transfer.trained={trained}", "augmentation=none", "mirror=false", *TWO_STAGES]
    fresh = train(small(class_folders, *words), tmp_path / "fresh")
    cached = train(small(class_folders, *words, "transfer.cache=true"), tmp_path / "cached")
    with np.load(tmp_path / "fresh" / "predictions.npz") as one, np.load(tmp_path / "cached" / "predictions.npz") as other:
        assert other["scores"] == pytest.approx(one["scores"], abs=1e-4)
    assert cached["fit/samples"] == fresh["fit/samples"]
    if mode == "federated":
        assert cached["fit/bytes_up"] == fresh["fit/bytes_up"]
    # The whole trunk is in the checkpoint, and scores pictures.
    models = [load_run(tmp_path / name).model for name in ("fresh", "cached")]
    pictures = torch.rand(2, 1, 16, 16)
    assert torch.allclose(models[0](pictures), models[1](pictures), atol=1e-4)


def test_features_send_the_heads_alone(class_folders: Path, tmp_path: Path) -> None:
    summary = train(small(class_folders, "transfer=features", *TWO_STAGES), tmp_path / "run")
    # Two clients with two heads of eight numbers each, and the loss's bias, four rounds.
    assert summary["fit/bytes_up"] == summary["fit/bytes_down"] == 4 * 2 * 4 * (2 * 8 + 1)


def test_caching_pictures_that_change_is_refused(class_folders: Path, tmp_path: Path) -> None:
    for word, message in (("mirror=true", "mirror=true"), ("augmentation=flip", "augmentation that changes them")):
        fixed = {"mirror": "mirror=false", "augmentation": "augmentation=none"} | {word.partition("=")[0]: word}
        with pytest.raises(ValueError, match=rf"transfer.cache=true needs pictures that stay as they are.*{message}"):
            train(small(class_folders, "transfer=features", "transfer.cache=true", *fixed.values()), tmp_path / "run")
    words = ["transfer=features", "transfer.cache=true", "transfer.trained=2", "mirror=false", "augmentation=none", *TWO_STAGES]
    with pytest.raises(ValueError, match=r"transfer.cache=true needs frozen stages"):
        train(small(class_folders, *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_the_trunk_of_another(class_folders: Path, tmp_path: Path) -> None:
    train(small(class_folders), tmp_path / "first")
    best = read_checkpoint(tmp_path / "first" / "checkpoints" / "best.ckpt")["state_dict"]
    for weights in (tmp_path / "first", tmp_path / "first" / "checkpoints" / "best.ckpt"):
        run_dir = tmp_path / f"second-{weights.name}"
        train(small(class_folders, f"weights={weights}", "transfer=features", "loss=bce", "heads=linear"), run_dir)
        second = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]
        names = [name for name in best if name.startswith("model.trunk.")]
        assert names
        assert all(torch.equal(best[name], second[name]) for name in names)
    with pytest.raises(ValueError, match=r"must fit the trunk, and .* features.4.weight is of shape \[8, 512\] instead of"):
        train(small(class_folders, f"weights={tmp_path / 'first'}", "trunk.width=16"), tmp_path / "third")
    train(small(class_folders, "mode=local"), tmp_path / "local")
    with pytest.raises(ValueError, match="must have one trunk for all, and in that run each client keeps its own"):
        train(small(class_folders, f"weights={tmp_path / 'local'}"), tmp_path / "fourth")
