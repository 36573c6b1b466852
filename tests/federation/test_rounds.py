import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtl.base.types import Diverged, Params
from mtl.data.client_batches import LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.bank import Bank, ClientStates
from mtl.federation.clients.contract import Block, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.inference import Inference
from mtl.federation.layout import Layout
from mtl.federation.message import message_bytes
from mtl.federation.objective import MAX_ACTIVATIONS, Objective
from mtl.federation.population.sampling import Sampling
from mtl.federation.round import Federation, RoundLog, State, check_health, run_round
from mtl.learning.checkpoints import CheckpointError
from mtl.learning.federated import FederatedLearning
from mtl.losses.bce import BCE
from mtl.losses.pairs import TaskCounts
from mtl.models import cnn, heads
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from tests.conftest import clone, make_federation
from tests.federation.small_federations import build_federation, initial_state

OBJECTIVE = Objective(Augmentation(flip=False), Normalise())


def make_model(data: FederatedData, *, dropout: bool = False) -> MultiTaskModel:
    torch.manual_seed(0)
    trunk = cnn.classic_cnn(data.image_shape, channels=(4,), width=8) if dropout else cnn.flat(data.image_shape)
    return MultiTaskModel(trunk, heads.LinearHeads(trunk.width, data.num_tasks), BCE(data.num_tasks))


def make_fed(data: FederatedData, model: MultiTaskModel, **changed: object) -> Federation:
    client = changed.pop("client", LocalSGD(learning_rate=0.1, momentum=0.0, weight_decay=0.0, head_scale=1.0))
    work = changed.pop("work", LocalWork(batch_size=4, epochs=1))
    training = Training(model, OBJECTIVE, client, work, seed=0)  # type: ignore[arg-type]
    return build_federation(data, training, changed.pop("backend", LoopBackend), **changed)  # type: ignore[arg-type]


def client_params(state: State, clients: list[int]) -> Params:
    """What the clients would start from, stacked."""
    return state.bank.load(clients, {"params": state.params})["params"]


def run(
    data: FederatedData, model: MultiTaskModel, rounds: int, keep: str = "nothing", **changed: object
) -> tuple[State, list[RoundLog]]:
    fed = make_fed(data, model, keep=keep, **changed)
    state, logs = initial_state(fed), []
    for r in range(rounds):
        state, log = run_round(fed, state, r)
        logs.append(log)
    return state, logs


def assert_equal(left: Params, right: Params, *, close: bool = False) -> None:
    for name in left:
        assert torch.allclose(left[name], right[name], atol=1e-6) if close else torch.equal(left[name], right[name]), name


def test_one_client_with_all_data_and_one_step_is_a_centralised_sgd_step() -> None:
    data = make_federation().pooled()
    model = make_model(data)
    state, _ = run(data, model, 1, work=LocalWork(batch_size=len(data.split.train), steps=1))
    # Independently: autograd through binary cross-entropy of the whole training set, one plain step.
    images = (data.images[data.split.train].float() / 255 - 0.5) / 0.25
    targets = data.targets[data.split.train].float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), targets, reduction="sum") / len(images)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    expected = {name: p.detach() - 0.1 * g for (name, p), g in zip(model.named_parameters(), grads, strict=True)}
    assert_equal(state.params, expected, close=True)


def test_a_round_is_the_weighted_mean_of_clients_trained_by_hand(federation: FederatedData) -> None:
    data, model = federation, make_model(federation)
    state, logs = run(data, model, 1)
    trained = []
    for client, images in enumerate(data.clients):
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
        plan = plan_batches(data.clients, [client], LocalWork(batch_size=4, epochs=1), seed=0, round=0)
        assert sorted(plan.index[plan.valid].tolist()) == images.tolist()
        tasks = data.assignment[client]
        for index, valid in zip(plan.index, plan.valid, strict=True):
            chosen = index[valid]
            logits = copied((data.images[chosen].float() / 255 - 0.5) / 0.25)[:, tasks]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, data.targets[chosen][:, tasks].float(), reduction="sum"
            )
            optimizer.zero_grad()
            (loss / len(chosen)).backward()
            optimizer.step()
        trained.append(copied.params())
    # Both clients hold eight images; each subtask is trained by one client, whose rows count alone.
    for name in model.params():
        by_owner = torch.where(
            data.assignment[0].view(-1, *[1] * (trained[0][name].dim() - 1)), trained[0][name], trained[1][name]
        )
        assert torch.allclose(state.params[name], by_owner, atol=1e-6)
    assert logs[0].num_samples == 16


def test_clients_that_drop_out_leave_no_trace(federation: FederatedData) -> None:
    class OnlyFirst(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:
            return [0, 1], [0]

    class Alone(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:
            return [0], [0]

    for keep in ("nothing", "heads", "all"):
        model = make_model(federation)
        with_dropped, logs = run(federation, model, 2, keep, sampling=OnlyFirst())
        alone, _ = run(federation, model, 2, keep, sampling=Alone())
        assert_equal(with_dropped.params, alone.params)
        assert_equal(with_dropped.bank.state_dict(), alone.bank.state_dict())
        assert (logs[0].bytes_down > logs[0].bytes_up) == (keep == "nothing")


def test_a_client_trains_the_same_in_any_company(federation: FederatedData) -> None:
    class Second(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:
            return [1], [1]

    model = make_model(federation, dropout=True)
    both, _ = run(federation, model, 2, "all")
    alone, _ = run(federation, model, 2, "all", sampling=Second())
    assert_equal(client_params(both, [1]), client_params(alone, [1]))


def test_heads_that_stay_are_neither_sent_nor_averaged(federation: FederatedData) -> None:
    model = make_model(federation)
    state, logs = run(federation, model, 2, "heads")
    assert_equal({"heads.weight": state.params["heads.weight"]}, {"heads.weight": model.params()["heads.weight"]})
    kept_heads = client_params(state, [0, 1])["heads.weight"]
    for client, tasks in enumerate(federation.assignment):
        assert not (kept_heads[client] == model.params()["heads.weight"])[tasks].all(1).any()
        assert torch.equal(kept_heads[client][~tasks], model.params()["heads.weight"][~tasks])
    assert logs[0].bytes_up == 0  # flat trunk: nothing but heads


def test_local_learning_is_each_client_alone(federation: FederatedData) -> None:
    model = make_model(federation)
    state, logs = run(federation, model, 3, "all")
    for client in range(2):
        single = replace(
            federation,
            clients=Ragged.of([federation.clients[client]]),
            assignment=federation.assignment[client : client + 1],
            positives=federation.positives[client : client + 1],
            negatives=federation.negatives[client : client + 1],
        )
        if client == 0:  # a client's draws go by its number, which only the first keeps here
            alone, _ = run(single, model, 3)
            loaded = client_params(state, [0])
            tasks = federation.assignment[0]
            assert torch.allclose(loaded["heads.weight"][0, tasks], alone.params["heads.weight"][tasks], atol=1e-6)
    assert sum(log.bytes_up + log.bytes_down for log in logs) == 0


def test_bytes_are_the_shared_part_and_the_heads_of_the_client(federation: FederatedData) -> None:
    params = {"trunk.w": torch.zeros(10), "heads.w": torch.zeros(4, 3), "heads.b": torch.zeros(4)}
    assignment = torch.tensor([[True, True, False, False], [True, False, False, False]])
    assert message_bytes(params, assignment, [0]) == 4 * (10 + 2 * 4)
    assert message_bytes(params, assignment, [0, 1]) == 4 * (10 + 2 * 4) + 4 * (10 + 4)


def test_a_loss_that_is_not_finite_names_client_and_round_and_leaves_the_state(federation: FederatedData) -> None:
    data = replace(federation, images=federation.images.float() / 255)
    model = make_model(data)
    data.images[data.clients[1][0]] = torch.nan
    fed = make_fed(data, model, keep="heads")
    state = initial_state(fed)
    before = clone(state.params | state.bank.state_dict())
    with pytest.raises(Diverged, match="client 1 is not finite in round 3"):
        run_round(fed, state, 2)
    assert_equal(state.params | state.bank.state_dict(), before)
    # Where nothing stays on the clients the round does not wait for the answer, and its log has it.
    fed = make_fed(data, model)
    _, log = run_round(fed, initial_state(fed), 2)
    assert log.finite.tolist() == [True, False]
    with pytest.raises(Diverged, match="client 1 is not finite in round 3"):
        check_health(log)


@pytest.mark.parametrize("keep", ["nothing", "heads", "all"])
@pytest.mark.parametrize("rule", ["argmax", "platt"])
def test_scores_come_from_the_models_that_answer(federation: FederatedData, keep: str, rule: str) -> None:
    model = make_model(federation)
    state, _ = run(federation, model, 2, keep)
    inference = Inference(model, OBJECTIVE, rule)
    scores = inference.scores(federation, state, federation.split.test)
    assert scores.shape == (8, 4)
    assert torch.allclose(inference.scores(federation, state, federation.split.test, stacked=True), scores, atol=1e-5)
    if rule == "argmax":
        for client in range(2):
            copied = copy.deepcopy(model)
            copied.load_state_dict({name: value[0] for name, value in client_params(state, [client]).items()})
            scored = copied((federation.images[federation.split.test].float() / 255 - 0.5) / 0.25)
            tasks = federation.assignment[client]
            assert torch.allclose(scores[:, tasks], scored[:, tasks], atol=1e-5)


@pytest.mark.parametrize("keep", ["nothing", "heads", "all"])
def test_scores_that_depend_on_the_batch_are_the_same_on_any_number_of_ranks(
    federation: FederatedData, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 8))
    local = Trunk(replace_batch_norm(trunk, "local"), 8)
    model = MultiTaskModel(local, heads.LinearHeads(8, 4), BCE(4))
    model.activation_numel = MAX_ACTIVATIONS // 3  # three images at once
    fed = make_fed(federation, model, keep=keep)
    learner = FederatedLearning(model, fed, Inference(model, OBJECTIVE), initial_state(fed).bank)
    expected = learner.scores(federation.split.test)
    for count in (2, 3, 4):  # of eight images, so that the fourth has none
        total = torch.zeros_like(expected)
        for rank in range(count):
            ranks = SimpleNamespace(number=rank, count=count, sum=lambda tensors: None)
            monkeypatch.setattr("mtl.learning.federated.Ranks", lambda ranks=ranks: ranks)
            total += learner.scores(federation.split.test)
        monkeypatch.undo()
        assert torch.allclose(total, expected, atol=1e-6)


def test_mirrored_scores_are_the_mean_over_both_sides(federation: FederatedData) -> None:
    model = make_model(federation)
    images = federation.images[:5]
    plain, mirrored = OBJECTIVE.scores(model, images), OBJECTIVE.scores(model, images.flip(-1))
    assert torch.allclose(replace(OBJECTIVE, mirror=True).scores(model, images), (plain + mirrored) / 2, atol=1e-6)


def test_the_mean_loss_per_image_is_logged_apart(federation: FederatedData) -> None:
    model = make_model(federation)
    _, logs = run(federation, model, 1, client=LocalSGD(learning_rate=1e-9, momentum=0.0, weight_decay=0.0))
    images = (federation.images.float() / 255 - 0.5) / 0.25
    for client, image_index in enumerate(federation.clients):
        positive, negative = BCE(4).terms(model(images[image_index]), TaskCounts(torch.ones(4), torch.ones(4)))
        targets, tasks = federation.targets[image_index], federation.assignment[client]
        assert torch.allclose(logs[0].losses[0, tasks], (positive * targets).mean(0)[tasks], atol=1e-5)
        assert torch.allclose(logs[0].losses[1, tasks], (negative * ~targets).mean(0)[tasks], atol=1e-5)


def bank_of(keep: str, num_clients: int, folder: Path | None = None, memory: float = math.inf) -> tuple[Bank, Params]:
    params = {"trunk.w": torch.arange(3.0), "heads.w": torch.arange(8.0).view(4, 2)}
    assignment = torch.zeros(num_clients, 4, dtype=torch.bool)
    assignment[torch.arange(num_clients), torch.arange(num_clients) % 4] = True
    assignment[0] = True
    return Bank(Layout(keep), {"params": params}, assignment, folder=folder, memory=memory), params


def keep_all(bank: Bank, clients: list[int], params: Params) -> None:
    """Store what stays of the clients' parameters, stacked."""
    states = ClientStates(
        bank.client_slots({"params": {name: value[0] for name, value in params.items()}}), bank._assignment[clients]
    )
    for place, client in enumerate(clients):
        states.add(block_of([client], {name: value[[place]] for name, value in params.items()}), torch.tensor([place]))
    bank.store(clients, states)


def block_of(clients: list[int], params: Params) -> Block:
    return Block(clients, {"params": params}, {}, torch.zeros(0))


def load(bank: Bank, clients: list[int], params: Params) -> Params:
    return bank.load(clients, {"params": params})["params"]


@pytest.mark.parametrize("keep", ["heads", "all"])
def test_what_stays_lies_in_a_file_beyond_a_size_and_is_the_same(keep: str, tmp_path: Path) -> None:
    in_memory, params = bank_of(keep, 6)
    in_file, _ = bank_of(keep, 6, tmp_path / "bank", memory=10)
    assert in_memory.folder is None
    assert in_file.folder == tmp_path / "bank"
    assert not in_file.folder.exists()  # a run directory must be empty when it is opened
    rng = torch.Generator().manual_seed(0)
    trained = {name: torch.randn(2, *value.shape, generator=rng) for name, value in params.items()}
    for bank in (in_memory, in_file):
        keep_all(bank, [4, 0], trained)
        assert bank.trained() == [0, 4]
        loaded = load(bank, [0, 1, 4], params)
        assert torch.equal(loaded["heads.w"][0], trained["heads.w"][1])  # client 0 trains every subtask
        assert torch.equal(loaded["heads.w"][1], params["heads.w"])  # client 1 never trained
        assert torch.equal(loaded["heads.w"][2, 0], trained["heads.w"][0, 0])  # client 4 trains subtask 0 alone
        assert torch.equal(loaded["heads.w"][2, 1:], params["heads.w"][1:])
        expected = trained["trunk.w"][[1]] if keep == "all" else params["trunk.w"][None]
        assert torch.equal(loaded["trunk.w"][:1], expected)
    assert_equal(in_memory.state_dict(), in_file.state_dict())
    fresh, _ = bank_of(keep, 6)
    fresh.load_state_dict(in_file.state_dict())
    assert_equal(load(fresh, [0, 1, 4], params), load(in_file, [0, 1, 4], params))


def test_a_hundred_thousand_clients_take_memory_only_where_they_have_trained() -> None:
    bank, params = bank_of("heads", 100_000)
    assert bank.num_bytes == (100_000 + 3) * 2 * 4
    keep_all(bank, [70_000], {name: value[None] + 1 for name, value in params.items()})
    state = bank.state_dict()
    assert state["clients"].tolist() == [70_000]
    assert state["params/heads.w"].shape == (1, 2)


@pytest.mark.parametrize(
    ("keep", "processes", "needed"), [("heads", 1, 4_800_000), ("all", 1, 11_999_964), ("all", 2, 23_999_928)]
)
def test_too_little_disk_for_all_that_stays_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, processes: int, needed: int
) -> None:
    # 599,997 clients with one subtask of two numbers each but the first with four, and with three shared numbers each: 4 bytes a number.
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    params = {"trunk.w": torch.arange(3.0), "heads.w": torch.arange(8.0).view(4, 2)}
    assignment = torch.zeros(600_000 - 3, 4, dtype=torch.bool)
    assignment[:, 0] = assignment[0] = True
    with pytest.raises(OSError, match=rf"bank must have {needed} bytes free for the state of the clients, got {needed - 1}"):
        Bank(Layout(keep), {"params": params}, assignment, folder=tmp_path / "bank", memory=10, num_processes=processes)
    assert not (tmp_path / "bank").exists()


def test_what_stays_is_saved_where_it_lies_and_no_more_than_is_in_use(tmp_path: Path) -> None:
    bank, params = bank_of("all", 100_000)
    keep_all(bank, [7, 3], {name: value[None].repeat(2, *[1] * value.dim()) for name, value in params.items()})
    state = bank.state_dict()
    assert state["clients"].tolist() == [3, 7]
    assert state["params/trunk.w"].data_ptr() == bank.state_dict()["params/trunk.w"].data_ptr()
    torch.save(state, tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 4_000


def test_what_stays_of_heads_is_the_rows_of_the_clients_own_subtasks() -> None:
    # 1,500 clients with a subtask each and 64 features: all rows of all clients would be 576 MB.
    clients = 1500
    states = ClientStates({"params": {"heads.w": torch.empty(clients, 64)}}, torch.eye(clients, dtype=torch.bool))
    assert states.sums["params/heads.w"].shape == (clients, 64)
    numbers = torch.arange(2.0 * clients).view(2, clients, 1).expand(2, clients, 64)
    states.add(block_of([1, 0], {"heads.w": numbers}), torch.tensor([1, 0]))
    assert states.sums["params/heads.w"][:3, 0].tolist() == [
        1500.0,
        1.0,
        0.0,
    ]  # client 0 is the second of the block, at its subtask 0


def test_a_checkpoint_of_another_layout_is_refused_in_words(federation: FederatedData) -> None:
    model = make_model(federation)
    fed = make_fed(federation, model)
    learner = FederatedLearning(model, fed, Inference(model, OBJECTIVE), initial_state(fed).bank)
    saved = {"account": {}, "timing": None, "pairs": None, "server_state": {}, "bank": {}, "backend": {"name": "loop"}}
    with pytest.raises(
        CheckpointError,
        match="must hold the server's slots momentum, got none: another algorithm or an earlier version of mtl wrote it",
    ):
        learner.on_load_checkpoint(saved)
