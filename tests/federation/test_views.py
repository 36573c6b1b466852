"""Clients of several widths: what they train, what the server makes of it, and what it costs them."""

import copy
import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.base.types import Params
from mtl.data.client_batches import LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.devices.ledger import Workload
from mtl.devices.widths import Level, narrow
from mtl.federation.aggregators.weighted_mean import RunningMean
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedavg import MOMENTUM, fedavg
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.auto import AutoBackend
from mtl.federation.clients.bank import Bank
from mtl.federation.clients.contract import Backend, Block, CohortJob, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.layout import Layout
from mtl.federation.message import message, pack
from mtl.federation.population.sampling import Sampling
from mtl.federation.population.views import Views, ViewsBackend, largest_that_fit
from mtl.federation.round import RoundLog, State, run_round
from mtl.federation.schedule import Schedule
from mtl.federation.server import Server
from mtl.learning.checkpoints import read_checkpoint
from mtl.losses.bce import BCE
from mtl.models import cnn, heads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.build import build_data, build_views, build_workloads
from mtl.run.learners import build_sampling
from mtl.run.load import build_start
from mtl.run.train import train
from tests.conftest import make_federation
from tests.federation.small_federations import build_federation, initial_state, make_orders, model_with
from tests.federation.test_backends import FACES, model_of, uneven
from tests.federation.test_rounds import OBJECTIVE, assert_equal
from tests.run.test_train import kill_after, numbers, small, without_time


def views_of(model: MultiTaskModel, data: FederatedData, of: list[int], ratios: tuple[float, ...] = (1.0, 0.5, 0.25)) -> Views:
    return Views([narrow(model, data.image_shape, ratio) for ratio in ratios], torch.tensor(of))


def rounds(
    make: Callable[[Training], Backend],
    data: FederatedData,
    model: MultiTaskModel,
    views: Views | None,
    *,
    count: int = 3,
    keep: str = "nothing",
    client: LocalSGD | None = None,
    server: Server | None = None,
    algorithm: Algorithm | None = None,
    sampling: Sampling | None = None,
    augment: bool = True,
) -> tuple[State, list[RoundLog]]:
    objective = replace(OBJECTIVE, augmentation=FACES) if augment else OBJECTIVE
    training = Training(model, objective, client or LocalSGD(), LocalWork(batch_size=3), 0)
    federation = build_federation(
        data,
        training,
        make if views is None else lambda training: ViewsBackend(views, training, make),
        schedule=Schedule(),
        sampling=sampling,
        server=server,
        algorithm=algorithm or fedavg(momentum=0.5),
        keep=keep,
        views=views,
    )
    state, logs = initial_state(federation), []
    for r in range(count):
        state, log = run_round(federation, state, r)
        logs.append(log)
    return state, logs


def test_each_coordinate_is_the_mean_over_those_that_train_it_by_hand() -> None:
    data = make_federation(3, num_classes=4)
    torch.manual_seed(0)
    trunk = cnn.classic_cnn(data.image_shape, channels=(4,), width=6, conv_dropout=0.0, dropout=0.0)
    model = MultiTaskModel(trunk, heads.LinearHeads(6, 4), BCE(4))
    views = views_of(model, data, [0, 1, 2])
    plain = LocalSGD(learning_rate=0.1, momentum=0.0, weight_decay=0.0, head_scale=1.0)
    state, _ = rounds(LoopBackend, data, model, views, count=1, client=plain, algorithm=fedavg(), augment=False)
    start, trained = model.params(), []
    for client, level in enumerate(views.levels):
        client_model = copy.deepcopy(level.model)
        optimizer = torch.optim.SGD(client_model.parameters(), lr=0.1)
        plan = plan_batches(data.clients, [client], LocalWork(batch_size=3), seed=0, round=0)
        tasks = data.assignment[client]
        for index, valid in zip(plan.index, plan.valid, strict=True):
            logits = client_model((data.images[index[valid]].float() / 255 - 0.5) / 0.25)[:, tasks]
            targets = data.targets[index[valid]][:, tasks].float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / int(valid.sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained.append(client_model.params())
    weights = [len(images) for images in data.clients]
    for name, value in start.items():
        if name.startswith("heads."):
            continue
        for place, before in enumerate(value.flatten().tolist()):
            # A client's number of the coordinate, where it has one.
            moved, total = 0.0, 0
            for level, mine, weight in zip(views.levels, trained, weights, strict=True):
                where = (level.index[name].flatten() == place).nonzero().flatten().tolist() if name in level.index else [place]
                if where:
                    moved += weight * (mine[name].flatten()[where[0]].item() - before)
                    total += weight
            assert state.params[name].flatten()[place].item() == pytest.approx(before + moved / total, abs=1e-6), (name, place)


@pytest.mark.parametrize("kind", ["dropout", "groupnorm"])
@pytest.mark.parametrize("make", [LoopBackend, StackedBackend])
def test_one_level_of_the_whole_width_is_fedavg_bit_for_bit(kind: str, make: Callable[[Training], Backend]) -> None:
    data = uneven([5, 1, 7], 2)
    model = model_of(kind, data)
    one, logs = rounds(make, data, model, Views.whole(model, 3))
    other, expected = rounds(make, data, model, None)
    for left, right in ((one.params, other.params), (one.server[MOMENTUM], other.server[MOMENTUM])):
        assert_equal(left, right)
    assert [(log.bytes_up, log.num_samples) for log in logs] == [(log.bytes_up, log.num_samples) for log in expected]


def test_all_at_the_whole_width_among_narrower_levels_is_fedavg() -> None:
    data = uneven([5, 1, 7], 2)
    model = model_of("dropout", data)
    one, _ = rounds(LoopBackend, data, model, views_of(model, data, [0, 0, 0]))
    other, _ = rounds(LoopBackend, data, model, None)
    assert_equal(one.params, other.params, close=True)


def test_what_nobody_trains_stays_and_its_momentum_too() -> None:
    data = uneven([5, 3, 7], 2)
    model = model_of("dropout", data)
    views = views_of(model, data, [0, 1, 2])

    class Those(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:  # type: ignore[override]
            return ([0, 1, 2], [0]) if round == 0 else ([1, 2], [1, 2])

    first, _ = rounds(LoopBackend, data, model, views, count=1, sampling=Those())
    second, _ = rounds(LoopBackend, data, model, views, count=2, sampling=Those())
    assert views.levels[1].index
    for name, place in views.levels[1].index.items():
        beyond = torch.ones(model.params()[name].numel(), dtype=torch.bool)
        beyond[place.flatten()] = False
        for before, after in ((first.params, second.params), (first.server[MOMENTUM], second.server[MOMENTUM])):
            assert torch.equal(before[name].flatten()[beyond], after[name].flatten()[beyond])
            assert not torch.equal(before[name].flatten()[~beyond], after[name].flatten()[~beyond])
        assert first.server[MOMENTUM][name].flatten()[beyond].any()


def test_a_mean_by_coordinate_by_hand() -> None:
    start: Params = {"trunk.w": torch.zeros(2, 2), "heads.w": torch.zeros(2, 1)}
    tasks, losses = torch.tensor([[True, False], [True, True]]), torch.zeros(1, 2, 2)
    # The first client, of weight 1, trains the first column alone.
    column: Params = {"trunk.w": torch.zeros(2, 1), "heads.w": torch.zeros(2, 1)}
    levels = [Level(1.0, model_with(start), {}), Level(0.5, model_with(column), {"trunk.w": torch.tensor([[0], [2]])})]
    orders = make_orders(start, tasks, [1, 3], Views(levels, torch.tensor([1, 0])))
    mean = RunningMean(orders, torch.tensor([1.0, 3.0], dtype=torch.float64))
    mine: Params = {"trunk.w": torch.tensor([[[8.0], [4.0]]]), "heads.w": torch.tensor([[[4.0], [9.0]]])}
    mean.add(Block([0], {}, mine, losses, view=1), torch.tensor([0]))
    mean.add(Block([1], {}, {"trunk.w": torch.ones(1, 2, 2), "heads.w": torch.ones(1, 2, 1)}, losses), torch.tensor([1]))
    assert mean.value()["trunk.w"].tolist() == [[11 / 4, 1.0], [7 / 4, 1.0]]
    assert mean.value()["heads.w"].flatten().tolist() == [7 / 4, 1.0]


def test_messages_are_as_long_as_what_a_client_has() -> None:
    data = uneven([5, 3, 7], 2)
    model = model_of("dropout", data)
    views = views_of(model, data, [0, 1, 2])

    class OneDrops(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:  # type: ignore[override]
            return [0, 1, 2], [0, 2]

    for keep in ("nothing", "heads"):
        lengths = []
        for level, tasks in zip(views.levels, data.assignment, strict=True):
            view_params = {
                name: value for name, value in level.model.params().items() if keep == "nothing" or not name.startswith("heads.")
            }
            lengths.append(len(pack(message(view_params, tasks))))
        assert lengths[2] < lengths[1] < lengths[0]
        _, (log,) = rounds(LoopBackend, data, model, views, count=1, sampling=OneDrops(), keep=keep)
        assert (log.bytes_down, log.bytes_up) == (sum(lengths), lengths[0] + lengths[2])


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 2)), min_size=1, max_size=5),
    st.sampled_from(["dropout", "groupnorm", "localnorm"]),
    st.sampled_from(["nothing", "heads"]),
    st.sampled_from([None, 1, 2]),
)
@settings(max_examples=12, deadline=None)
def test_loop_and_stacked_agree(clients: list[tuple[int, int]], kind: str, keep: str, block: int | None) -> None:
    data = uneven([size for size, _ in clients], 4)
    model = wide(kind, data)
    views = views_of(model, data, [level for _, level in clients])
    one, _ = rounds(LoopBackend, data, model, views, keep=keep, sampling=Sampling(dropout=0.2))
    other, _ = rounds(lambda t: StackedBackend(t, block=block), data, model, views, keep=keep, sampling=Sampling(dropout=0.2))
    for left, right in ((one.params, other.params), (one.bank.state_dict(), other.bank.state_dict())):
        for name, value in left.items():
            assert torch.allclose(value, right[name], rtol=1e-10, atol=1e-12), name


def wide(kind: str, data: FederatedData) -> MultiTaskModel:
    """In double precision, with channels enough to cut: two groups at the least."""
    if kind != "groupnorm":
        return model_of(kind, data, torch.float64)
    torch.manual_seed(0)
    trunk = cnn.small_cnn(data.image_shape, channels=(8, 8), width=8, groups=4)
    return MultiTaskModel(trunk, heads.LinearHeads(8, 4), BCE(4)).double()


@pytest.mark.parametrize("make", [LoopBackend, StackedBackend])
def test_a_client_trains_the_same_in_any_company(make: Callable[[Training], Backend]) -> None:
    data = uneven([5, 3, 7, 4], 2)
    model = model_of("dropout", data, torch.float64)
    views = views_of(model, data, [1, 0, 1, 2])
    training = Training(model, replace(OBJECTIVE, augmentation=FACES), LocalSGD(), LocalWork(3), 0)
    slots = training.slots(model.params(), data.num_tasks)
    bank = Bank(Layout(), slots, data.assignment)

    def updates(clients: list[int]) -> dict[int, Params]:
        job = CohortJob(clients, 0, lambda chosen: bank.load(chosen, slots), 0.1)
        return {
            client: {name: value[place].clone() for name, value in trained.update.items()}
            for trained in ViewsBackend(views, training, make)(job, data)
            for place, client in enumerate(trained.clients)
        }

    joint = updates([3, 1, 2, 0])
    for client in range(4):
        for name, value in updates([client])[client].items():
            assert torch.allclose(value, joint[client][name], rtol=1e-12, atol=1e-14)


def test_auto_chooses_once_for_all_widths_and_waits_for_a_client() -> None:
    data = uneven([5, 3, 7], 2)
    model = model_of("dropout", data)
    views = views_of(model, data, [1, 1, 2])

    class Late(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:  # type: ignore[override]
            return [0, 1, 2], [[], [2], [0, 1, 2]][round]

    made: list[AutoBackend] = []

    def auto(training: Training) -> Backend:
        made.append(AutoBackend(training, num_rounds=3, compile="never"))
        return made[-1]

    state, _ = rounds(auto, data, model, views, count=3, sampling=Late())
    assert len({backend.name for backend in made}) == 1
    assert made[0].name in ("loop", "vmap")
    expected, _ = rounds(LoopBackend, data, model, views, count=3, sampling=Late())
    for name, value in expected.params.items():
        assert torch.allclose(state.params[name], value, rtol=1e-4, atol=1e-5)
    rounds(auto, data, model, views, count=1, sampling=Late())
    assert made[-1].name == "auto"


def test_the_largest_that_fits() -> None:
    memory = [[100.0, 100.0, 100.0], [50.0, 40.0, 60.0], [10.0, 10.0, 30.0]]
    nothing = torch.zeros(3)
    workloads = [Workload(nothing, nothing, nothing, torch.tensor(row)) for row in memory]
    assert largest_that_fit(workloads, torch.tensor([100.0, 99.0, 20.0])).tolist() == [0, 1, 2]


MIXED = [
    "trunk=classic_cnn",
    "trunk.channels=[4,8]",
    "trunk.width=8",
    "widths=levels",
    "widths.shares=[1,1,1]",
    "partition.num_clients=3",
]
MORE = ["algorithm=fedavgm", "partition=iid", "assignment=all", "sampling.dropout=0.3"]


@pytest.mark.slow
def test_two_ranks_agree_with_one_on_several_widths(class_folders: Path, tmp_path: Path) -> None:
    train(small(class_folders, *MIXED, *MORE), tmp_path / "one")
    train(small(class_folders, *MIXED, *MORE, "trainer.devices=2"), tmp_path / "two")
    one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-5, atol=1e-6), name


def test_an_interrupted_run_resumes_and_its_accounts_add_up(class_folders: Path, tmp_path: Path) -> None:
    config = small(class_folders, *MIXED, *MORE, "rounds=4")
    summary = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(summary)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    seen = {ratio: summary[f"fit/samples_width_{ratio}"] or 0 for ratio in ("1", "0.5", "0.25")}
    assert sum(seen.values()) == summary["fit/samples"]
    assert summary["cost/flops_total"] == sum(n * (summary[f"cost/flops_training_width_{r}"] or 0) for r, n in seen.items())
    assert summary["cost/parameters_width_1"] == summary["cost/parameters"]
    with np.load(tmp_path / "whole" / "federation.npz") as file:
        assert sorted(file["widths"].tolist()) == [0.25, 0.5, 1.0]


DEVICE = {
    "peak_flop_per_second": 1e9,
    "efficiency": 0.5,
    "down_bit_per_second": 1e6,
    "up_bit_per_second": 1e6,
    "latency_seconds": 0,
    "compute_watts": 2,
    "radio_watts": 1,
    "idle_watts": 1,
}


def test_a_fleet_gives_each_client_the_widest_model_that_it_holds(class_folders: Path, tmp_path: Path) -> None:
    dealt = ["fleet=boards", "partition=iid", "partition.num_clients=4", "assignment=all"]
    config = small(class_folders, *MIXED[:3], *dealt, "widths.levels=[1,0.5]", "rounds=2")
    data = build_data(config)
    model, objective = build_start(config, data)
    (work,) = build_workloads(config, data, [Level(1.0, model, {})], objective)
    needed = float(work.memory.max())
    config.fleet.profiles = {"large": {**DEVICE, "memory_bytes": needed}, "little": {**DEVICE, "memory_bytes": needed - 1}}
    config.fleet.mix = {"large": 1, "little": 3}
    with pytest.raises(ValueError, match=r"skip leaves such clients out, and fleet.memory=shrink gives them a narrower model"):
        build_sampling(config, data, objective, Views.whole(model, data.num_clients))
    config.fleet.memory = "shrink"
    summary = train(config, tmp_path / "run")
    with (tmp_path / "run" / "fleet.csv").open() as file:
        clients = list(csv.DictReader(file))
    assert sorted((row["device"], row["width"]) for row in clients) == [("large", "1"), *[("little", "0.5")] * 3]
    assert all(int(row["drawn"]) for row in clients)
    assert sum(float(row["bytes_up"]) for row in clients) * 2 == summary["fit/bytes_up"]
    for row in clients:
        assert float(row["modelled_memory_bytes"]) <= (needed if row["device"] == "large" else needed - 1)
        steps = 2 * 4  # of images that a client sees: two steps of all its four
        assert float(row["flops"]) == steps * (summary[f"cost/flops_training_width_{row['width']}"] or 0)
    config.fleet.profiles.little.memory_bytes = 10
    with pytest.raises(
        ValueError,
        match=r"on little needs [\d,]+ bytes for a training step of the smallest model that it may train and has 10",
    ):
        build_sampling(config, data, objective, build_views(config, data, model, objective))


def test_a_width_that_nobody_trains_is_told(class_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small(class_folders, *MIXED[:3], "partition.num_clients=4", "widths=levels", "widths.shares=[0,0,4]")
    data = build_data(config)
    assert build_views(config, data, *build_start(config, data)).widths == [0.25] * 4
    assert "no client trains the whole width: the channels beyond 0.25 of the width stay untrained" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=centralised"], "widths.levels below 1 need mode=federated, got centralised"),
        (["keep=all"], "need a trunk that is sent: keep=nothing or heads, got all"),
        (["transfer=features"], "need a trunk that is trained whole: transfer.trained must be null, got 0"),
        (["server=conflict_averse"], "need a server that need not compare whole updates: server.balancer must be null"),
        (["fusion=platt"], "need fusion=argmax, as no client could score with the models of others, got platt"),
        (["balancer=moco"], "change what is trained, and balancer MoCo remembers the gradients of all of it"),
        (["architecture=mmoe"], "need architecture=hard_sharing, a model with one trunk, got "),
        (
            ["widths.shares=null"],
            "widths.shares must say how many clients have which, or a fleet with fleet.memory=shrink; got null",
        ),
        (["fleet=boards", "fleet.memory=shrink"], "widths.shares must be null where fleet.memory=shrink says who trains which"),
        (
            ["fleet=boards", "fleet.memory=shrink", "widths=whole"],
            "fleet.memory=shrink needs trunk=peers, or widths.levels below 1",
        ),
    ],
)
def test_what_does_not_go_with_widths_is_refused(class_folders: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    words = [word for word in MIXED if not (word.startswith("widths") and "widths=whole" in overrides)]
    with pytest.raises(ValueError, match=message):
        train(small(class_folders, *words, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_balancers_and_heads_that_stay_go_with_widths(class_folders: Path, tmp_path: Path) -> None:
    for number, overrides in enumerate((["balancer=famo", "keep=heads"], ["balancer=pcgrad", "transfer.unfreeze_every=1"])):
        assert train(small(class_folders, *MIXED, *overrides, "rounds=1"), tmp_path / str(number))["test/auroc"] is not None
