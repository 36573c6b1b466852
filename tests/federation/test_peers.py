"""Clients of several architectures, which share the heads alone: what they train, what the server makes of it, and what it costs them."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig

from mtl.base.types import Params
from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.devices.widths import Level
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.contract import Backend, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.message import message, pack
from mtl.federation.population.sampling import Sampling
from mtl.federation.population.views import Views, ViewsBackend
from mtl.federation.round import RoundLog, State, run_round
from mtl.federation.schedule import Schedule
from mtl.federation.server_steps.distil_ensemble import DistilEnsemble, Ensemble
from mtl.learning.checkpoints import read_checkpoint
from mtl.losses.bce import BCE
from mtl.models.cnn import separable_cnn, small_cnn
from mtl.models.heads import CosineHeads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.peers import Peers
from mtl.run.build import build_data, build_views, build_workloads
from mtl.run.load import TrainedRun, build_start, load_run
from mtl.run.train import train
from mtl.trained.export import ExportOptions, export_run
from mtl.trained.scoring import load_data, predict_eager
from tests.composing import compose
from tests.federation.small_federations import build_federation, initial_state
from tests.federation.test_backends import uneven
from tests.federation.test_rounds import OBJECTIVE
from tests.federation.test_views import DEVICE
from tests.run.test_train import SMALL, kill_after, numbers, without_time

OF = [0, 1, 1]


def peers_of(data: FederatedData) -> tuple[MultiTaskModel, Views]:
    torch.manual_seed(0)
    shape = data.image_shape
    trunk = Peers(
        {"plain": small_cnn(shape, channels=(8,), width=6), "deep": separable_cnn(shape, channels=(8, 8), width=6)}, "plain"
    )
    model = MultiTaskModel(trunk, CosineHeads(6, data.num_tasks), BCE(data.num_tasks)).double()
    levels = [Level(1.0, model.with_trunk(trunk.alone(name)), {}, name) for name in trunk.names]
    return model, Views(levels, torch.tensor(OF))


@dataclass(frozen=True)
class Only(Sampling):
    """These clients and no others, in every round."""

    clients: tuple[int, ...] = (0, 1, 2)

    def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:  # type: ignore[override]
        return list(self.clients), list(self.clients)


def one_round(
    data: FederatedData,
    model: MultiTaskModel,
    views: Views | None,
    make: Callable[[Training], Backend] = LoopBackend,
    *,
    clients: tuple[int, ...] = (0, 1, 2),
    ensemble: Ensemble | None = None,
) -> tuple[State, RoundLog]:
    training = Training(model, OBJECTIVE, LocalSGD(learning_rate=0.05), LocalWork(batch_size=3), 0)
    federation = build_federation(
        data,
        training,
        make if views is None else lambda training: ViewsBackend(views, training, make),
        schedule=Schedule(),
        sampling=Only(clients=clients),
        views=views,
        steps=() if ensemble is None else (ensemble,),
    )
    return run_round(federation, initial_state(federation), 0)


def test_a_trunk_is_the_mean_over_its_own_clients_and_a_head_over_all_that_train_it() -> None:
    data = uneven([5, 1, 7], 1)
    model, views = peers_of(data)
    state, _ = one_round(data, model, views)
    alone = [one_round(data, views.levels[level].model, None, clients=(client,))[0].params for client, level in enumerate(OF)]
    weights = torch.tensor([float(size) for size in data.clients.sizes], dtype=torch.float64)
    for name, start in model.params().items():
        for row in range(len(start)) if name.startswith("heads.") else [...]:
            members = [k for k in range(3) if name in alone[k] and (row is ... or bool(data.assignment[k, row]))]
            total = sum(weights[k] for k in members)
            mean = sum((weights[k] * (alone[k][name][row] - start[row]) for k in members), torch.zeros_like(start[row]))
            torch.testing.assert_close(state.params[name][row], start[row] + (mean / total if members else 0))
        assert not name.startswith("trunk.") or sum(name in params for params in alone) in (1, 2)


def test_the_backends_agree() -> None:
    data = uneven([5, 1, 7], 1)
    one, other = (one_round(data, *peers_of(data), make)[0].params for make in (LoopBackend, StackedBackend))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-11)


def test_a_client_is_sent_its_own_trunk_to_the_byte() -> None:
    data = uneven([5, 1, 7], 1)
    model, views = peers_of(data)
    lengths = [views.message_bytes(model.params(), data.assignment, [client]) for client in range(3)]
    sent = [pack(message(views.levels[level].model.params(), data.assignment[k])) for k, level in enumerate(OF)]
    assert lengths == [len(content) for content in sent]
    _, log = one_round(data, model, views)
    assert log.bytes_up == log.bytes_down == sum(lengths)


def test_a_trunk_whose_clients_stay_away_rests() -> None:
    data = uneven([5, 1, 7], 1)
    model, views = peers_of(data)
    state, _ = one_round(data, model, views, clients=(1, 2))
    start = model.params()
    moved = {name for name, value in state.params.items() if not torch.equal(value, start[name])}
    assert {name for name in start if name.startswith("trunk.features.deep")} <= moved
    assert not any(name.startswith("trunk.features.plain") for name in moved)


def test_all_trunks_learn_from_the_ensemble_of_all() -> None:
    data = uneven([5, 1, 7], 1)
    model, views = peers_of(data)
    images = torch.randint(0, 256, (40, *data.image_shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    options = DistilEnsemble(steps=60, batch_size=20, rate=0.05)
    models = [level.model for level in views.levels]
    ensemble = Ensemble(options, models, OBJECTIVE, LocalSGD(), images, seed=0, students=views.students)
    averaged, learned = (one_round(data, model, views, ensemble=one)[0].params for one in (None, ensemble))
    alone = [one_round(data, models[level], None, clients=(client,))[0].params for client, level in enumerate(OF)]
    scores = []
    for params, level in zip(alone, OF, strict=True):
        client_model = models[level]
        client_model.load_state_dict(params, strict=False)
        scores.append(OBJECTIVE.scores(client_model, images).double())
    counts = data.assignment.double().sum(0)
    teacher = sum(
        (row * client_scores for row, client_scores in zip(data.assignment, scores, strict=True)), torch.zeros(())
    ) / counts.clamp_min(1)

    def distance(params: Params, name: str) -> float:
        model.load_state_dict(params, strict=False)
        assert isinstance(model.trunk, Peers)
        with model.trunk.choosing(name):
            away = OBJECTIVE.scores(model, images) - teacher
        return float(away[:, counts > 0].square().mean())

    for name in ("plain", "deep"):
        assert distance(learned, name) < 0.5 * distance(averaged, name)


MIXED = [
    "trunk=peers",
    "+trunk@trunk.trunks.plain=small_cnn",
    "+trunk@trunk.trunks.light=separable_cnn",
    "trunk.trunks.plain.channels=[8]",
    "trunk.trunks.light.channels=[8,8]",
    "trunk.trunks.plain.width=8",
    "trunk.trunks.light.width=8",
    "trunk.server=plain",
    "trunk.shares={plain:1,light:2}",
    "partition.num_clients=3",
    "server=feddf",
    "server.steps=3",
    "server.num_images=20",
    "algorithm.momentum=.5",
    "sampling.dropout=0.3",
]
PLAIN = [word for word in SMALL if not word.startswith("trunk.")]


def mixed(root: Path, *overrides: str) -> DictConfig:
    return compose([*PLAIN, f"data.root={root}", *MIXED, *overrides])


def test_a_run_of_two_architectures(class_folders: Path, tmp_path: Path) -> None:
    config = mixed(class_folders)
    summary = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(summary)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    assert summary["cost/parameters"] == summary["cost/parameters_trunk_plain"]
    assert summary["cost/parameters"] != summary["cost/parameters_trunk_light"]
    seen = {name: summary[f"fit/samples_trunk_{name}"] or 0 for name in ("plain", "light")}
    assert sum(seen.values()) == summary["fit/samples"]
    assert summary["cost/flops_total"] == sum(n * (summary[f"cost/flops_training_trunk_{t}"] or 0) for t, n in seen.items())
    assert 0 <= (summary["test/trunk_light/auroc"] or -1) <= 1

    with np.load(tmp_path / "whole" / "federation.npz") as file:
        trunks = file["trunks"].tolist()
    assert sorted(trunks) == ["light", "light", "plain"]
    server, light = load_run(tmp_path / "whole"), load_run(tmp_path / "whole", client=trunks.index("light"))
    data = load_data(server)
    rank1 = [identified(run, data) for run in (server, light)]
    assert rank1 == [summary["test/rank1"], summary["test/trunk_light/rank1"]]
    with pytest.raises(ValueError, match=r"client must be in \[0, 2\], got 3"):
        load_run(tmp_path / "whole", client=3)
    done = export_run(tmp_path / "whole", ExportOptions(client=trunks.index("light")), out=tmp_path / "light.onnx")
    assert done.file["rank1"] == summary["test/trunk_light/rank1"]


@pytest.mark.slow
def test_two_ranks_agree_with_one_on_two_architectures(class_folders: Path, tmp_path: Path) -> None:
    train(mixed(class_folders), tmp_path / "one")
    train(mixed(class_folders, "trainer.devices=2"), tmp_path / "two")
    one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def identified(run: TrainedRun, data: FederatedData) -> float | None:
    scores = predict_eager(run, data.images[data.split.test])[0]
    correct = scores.argmax(1) == data.identity[data.split.test]
    return float(correct.double().mean())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=centralised"], "trunk=peers needs mode=federated, got centralised"),
        (["keep=all"], "trunk=peers needs a trunk that is sent: keep=nothing or heads, got all"),
        (["widths=levels"], r"trunk=peers gives each client a trunk as it is: widths.levels must be \[1\]"),
        (["architecture=mmoe"], "trunk=peers needs architecture=hard_sharing"),
        (["trunk.shares=null"], "trunk.shares must say how many clients have which"),
        (["+trunk.shares.heavy=3"], "trunk.shares must be of trunk.trunks, plain, light, got plain, light, heavy"),
        (["trunk.server=heavy"], "trunk.server must be one of trunk.trunks, plain, light, got heavy"),
        (["trunk.shares={light:1,plain:1}"], "trunk.shares must be whole numbers that add up to the 3 clients"),
        (["trunk.trunks.light.width=6"], r"features of one width, for heads that all share, got {'light': 6, 'plain': 8}"),
        (["~trunk.trunks.light"], "trunk.trunks must name at least 2 trunks"),
        (["weights=/nowhere"], "weights"),
    ],
)
def test_what_does_not_go_with_peers_is_refused(class_folders: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises((ValueError, HydraException)) as error:
        train(mixed(class_folders, *overrides), tmp_path / "run")
    assert re.search(message, str(error.value.__cause__ or error.value))
    assert not (tmp_path / "run").exists()


def test_a_client_has_the_first_trunk_that_its_device_holds(class_folders: Path, tmp_path: Path) -> None:
    large = "trunk.trunks.plain.channels=[64]"
    config = mixed(class_folders, large)
    data = build_data(config)
    model, objective = build_start(config, data)
    views = build_views(config, data, model, objective)
    plain, light = (work.memory for work in build_workloads(config, data, views.levels, objective))
    assert plain.min() > light.max()
    config = mixed(class_folders, large, "fleet=boards", "fleet.memory=shrink", "trunk.shares=null", "rounds=1")
    config.fleet.profiles = {
        "big": {**DEVICE, "memory_bytes": float(plain.max())},
        "small": {**DEVICE, "memory_bytes": float(plain.min()) - 1},
    }
    config.fleet.mix = {"big": 1, "small": 2}
    train(config, tmp_path / "run")
    with (tmp_path / "run" / "fleet.csv").open() as file:
        devices = [row["device"] for row in csv.DictReader(file)]
    with np.load(tmp_path / "run" / "federation.npz") as file:
        assert file["trunks"].tolist() == [{"big": "plain", "small": "light"}[device] for device in devices]
