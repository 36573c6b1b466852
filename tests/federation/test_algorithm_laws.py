"""Laws of federated algorithms, held by every member of the group `algorithm` or by those that they are stated of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra_zen import instantiate
from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.data.client_batches import LocalWork
from mtl.data.transforms import Normalise
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.feddyn import DUAL, MEAN_DUAL, feddyn
from mtl.federation.algorithms.fednova import Normalised, NormalisedUpdate, fednova
from mtl.federation.algorithms.fedprox import fedprox
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.algorithms.scaffold import CLIENT_CONTROL, CONTROL, scaffold
from mtl.federation.clients.contract import MEMORY, Backend, Block, CohortJob, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.message import message, pack
from mtl.federation.objective import Objective
from mtl.federation.population.sampling import Sampling
from mtl.federation.ranks import Ranks
from mtl.federation.round import Federation, State
from mtl.federation.schedule import Schedule
from mtl.federation.server import mean
from mtl.learning.checkpoints import read_checkpoint
from mtl.run.members import WHOLE
from mtl.run.train import train
from tests.composing import compose
from tests.federation.quadratics import SGD, kept, only, path, quadratic, rounds, step_by_step
from tests.federation.small_federations import build_federation, initial_state, make_orders
from tests.federation.test_backends import FACES, assert_close, model_of, uneven
from tests.run.test_train import kill_after, numbers, small, without_time

ASYNCHRONOUS = ("fedbuff", "fedasync")  # their laws are in test_asynchronous.py
NAMES = [
    *(name for name in WHOLE["algorithm"] if name not in ASYNCHRONOUS),
    "scaffold algorithm.option=I",
    "fednova algorithm.mu=.1",
]
MOMENTUM = LocalSGD(learning_rate=0.02, momentum=0.9, weight_decay=1e-2, head_scale=0.5)


def algorithm_of(name: str) -> Algorithm:
    words = name.split()
    made = instantiate(compose([f"algorithm={words[0]}", *words[1:]]).algorithm)
    return made if isinstance(made, Algorithm) else Algorithm(made)


SENT_WHOLE = [name for name in NAMES if algorithm_of(name).keep in ("nothing", "norms")]


def images(
    name: str, make: Callable[[Training], Backend], *, keep: str = "nothing", client: LocalSGD = MOMENTUM, **options: object
) -> Federation:
    """Four clients of unequal size that train some of four subtasks, in double precision."""
    data = uneven([5, 1, 7, 3], 1)
    training = Training(
        model_of("dropout", data, torch.float64), Objective(FACES, Normalise()), client, LocalWork(batch_size=3), 0
    )
    options = {"schedule": Schedule("cosine"), "sampling": Sampling(dropout=0.3)} | options
    return build_federation(data, training, make, algorithm=algorithm_of(name), keep=keep, **options)  # type: ignore[arg-type]


def assert_same(left: Slots, right: Slots) -> None:
    assert left.keys() == right.keys()
    for slot, values in left.items():
        assert values.keys() == right[slot].keys()
        for name, value in values.items():
            assert torch.equal(value, right[slot][name]), (slot, name)


def assert_agree(name: str, keep: str, make: Callable[[Training], Backend], tolerance: float) -> None:
    one, other = (rounds(images(name, backend, keep=keep), 3)[0][-1] for backend in (LoopBackend, make))
    assert_close(one, other, tolerance)
    for slot, values in one.server.items():
        for key, value in values.items():
            assert torch.allclose(value, other.server[slot][key], rtol=1e-9, atol=tolerance), (slot, key)


@pytest.mark.parametrize("keep", ["nothing", "heads"])
@pytest.mark.parametrize("name", NAMES)
def test_loop_and_stacked_agree(name: str, keep: str) -> None:
    client = algorithm_of(name).client
    takes_heads_too = client.answers != "params" or client.passes > 1  # gradients of whole models, which the rules ask to be sent
    if keep == "nothing" or not takes_heads_too:
        assert_agree(name, keep, lambda training: StackedBackend(training, block=3), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_agrees(name: str) -> None:
    assert_agree(name, "nothing", lambda training: StackedBackend(training, compiled=True), 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(name: str) -> None:
    fed = images(name, StackedBackend)
    whole, _ = rounds(fed, 4)
    (*_, before), _ = rounds(fed, 2)
    fresh = initial_state(fed).bank
    fresh.load_state_dict({key: value.clone() for key, value in before.bank.state_dict().items()})
    resumed, _ = rounds(fed, 2, State(before.server, fresh), first=2)
    assert_same(resumed[-1].server, whole[-1].server)
    assert_same({"bank": fresh.state_dict()}, {"bank": whole[-1].bank.state_dict()})


@pytest.mark.parametrize("name", NAMES)
def test_clients_that_drop_out_leave_no_trace(name: str) -> None:
    ends = [
        rounds(images(name, LoopBackend, sampling=sampling), 3)[0][-1] for sampling in (only([0, 1, 2], [0, 2]), only([0, 2]))
    ]
    assert_same(ends[0].server, ends[1].server)
    assert_same({"bank": ends[0].bank.state_dict()}, {"bank": ends[1].bank.state_dict()})


# pFedMe steps along the pull alone, and the server of the adaptive ones divides the step by its own root.
PLAIN_STEP = [name for name in SENT_WHOLE if name not in ("pfedme", "fedadagrad", "fedadam", "fedyogi")]


@pytest.mark.parametrize("name", PLAIN_STEP)
@pytest.mark.parametrize("heads", [False, True])
def test_one_client_with_all_data_and_one_step_is_a_centralised_sgd_step(name: str, heads: bool) -> None:
    fed = quadratic(algorithm_of(name), b=[[1.0]], h=[[4.0]], heads=heads, work=LocalWork(64, steps=1))
    step = 0.1 * 4 * 1.0
    assert path(fed, 1) == pytest.approx([2 * step if name == "feddyn" else step])  # FedDyn: x1 = 2 y - x0


@pytest.mark.parametrize("name", NAMES)
def test_head_t_is_a_federation_of_the_clients_that_train_subtask_t(name: str) -> None:
    """Three clients, unequal in size, of which 0 and 1 train subtask 0, and 1 and 2 subtask 1; two of them in each round."""
    b, h = [[1.0, 9.0], [-1.0, 2.0], [9.0, -2.0]], [[1.0, 1.0], [4.0, 0.5], [1.0, 2.0]]
    tasks = torch.tensor([[True, False], [True, True], [False, True]])
    sizes, client = (2, 3, 5), replace(SGD, momentum=0.5, head_scale=0.5)
    options = {"heads": True, "client": client, "work": LocalWork(batch_size=1, epochs=1), "schedule": Schedule("linear")}
    both = quadratic(algorithm_of(name), b=b, h=h, images=sizes, assignment=tasks, **options)  # type: ignore[arg-type]
    together = [state.params["heads.x"] for state in rounds(both, 5)[0]]
    for task, members in enumerate(([0, 1], [1, 2])):
        alone = quadratic(
            algorithm_of(name),
            b=[[b[member][task]] for member in members],
            h=[[h[member][task]] for member in members],
            images=[sizes[member] for member in members],
            **options,  # type: ignore[arg-type]
        )
        assert path(alone, 5) == pytest.approx([float(x[task]) for x in together], rel=1e-12)


@pytest.mark.parametrize("name", SENT_WHOLE)
def test_the_heads_learning_rate_is_a_learning_rate(name: str) -> None:
    whole = quadratic(algorithm_of(name), client=replace(SGD, momentum=0.5, learning_rate=0.05))
    half = quadratic(algorithm_of(name), heads=True, client=replace(SGD, momentum=0.5, head_scale=0.5))
    assert path(whole, 4) == pytest.approx(path(half, 4), rel=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "server_slot", "client_slot"),
    [
        (scaffold("I"), CONTROL, CLIENT_CONTROL),
        (scaffold("II"), CONTROL, CLIENT_CONTROL),
        (feddyn(1.0), MEAN_DUAL, DUAL),
    ],
)
@pytest.mark.parametrize("weighting", ["samples", "clients"])
def test_the_servers_variate_is_the_mean_over_all_clients_in_every_round(
    algorithm: Algorithm, server_slot: str, client_slot: str, weighting: str
) -> None:
    b, h = [[1.0, 0.5], [-1.0, 2.0], [3.0, -2.0], [0.0, 1.0]], [[1.0, 1.0], [4.0, 0.5], [1.0, 2.0], [2.0, 2.0]]
    tasks = torch.tensor([[True, False], [True, True], [False, True], [True, True]])
    fed = quadratic(
        algorithm,
        b=b,
        h=h,
        images=(1, 2, 3, 4),
        heads=True,
        assignment=tasks,
        client=replace(SGD, momentum=0.5),
        work=LocalWork(batch_size=1, epochs=1),
        sampling=Sampling(cohort=2, dropout=0.3),
        server=mean(weighting),
        schedule=Schedule("cosine"),
        num_rounds=12,
    )
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]) if weighting == "samples" else torch.ones(4)
    shares = weights[:, None].double() * tasks
    for state in step_by_step(fed, 10):
        expected = (kept(fed, state, client_slot) * shares).sum(0) / shares.sum(0)
        assert torch.allclose(state.server[server_slot]["heads.x"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", ["I", "II"])
def test_after_one_step_the_variates_of_scaffold_are_the_gradients_at_the_received_model(option: str) -> None:
    """At whatever learning rate the round has, and with momentum."""
    client = replace(SGD, momentum=0.9, head_scale=0.3)
    options = {"client": client, "work": LocalWork(64, steps=1), "schedule": Schedule("linear"), "heads": True}
    fed = quadratic(scaffold(option), **options)  # type: ignore[arg-type]
    x = 0.0
    for state in step_by_step(fed, 4):
        assert kept(fed, state, CLIENT_CONTROL).flatten().tolist() == pytest.approx([x - 1, 4 * (x + 1)], rel=1e-9)
        x = float(state.params["heads.x"])


def test_fedprox_without_a_pull_or_with_one_step_is_fedavg() -> None:
    momentum = replace(SGD, momentum=0.9)
    assert path(quadratic(fedprox(0.0), client=momentum), 3) == path(quadratic(fedavg(), client=momentum), 3)
    one = LocalWork(64, steps=1)
    assert path(quadratic(fedprox(3.0), work=one), 3) == path(quadratic(fedavg(), work=one), 3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_of_equal_steps_is_fedavg(momentum: float) -> None:
    client = replace(SGD, momentum=momentum, weight_decay=0.01)
    assert path(quadratic(fednova(), client=client), 3) == pytest.approx(path(quadratic(fedavg(), client=client), 3), rel=1e-12)


def test_a_client_without_a_step_adds_nothing_to_fednova() -> None:
    params = {"trunk.w": torch.zeros(2, dtype=torch.float64), "loss.bias": torch.zeros((), dtype=torch.float64)}
    orders = make_orders(params, torch.ones(2, 1, dtype=torch.bool), [1, 3])
    orders = replace(orders, cohort=replace(orders.cohort, steps=[4, 0]))
    algorithm = fednova()
    assert hasattr(algorithm.server, "step")
    collected = NormalisedUpdate(
        Normalised(algorithm.client, algorithm.server.step, SGD), orders, torch.tensor([1.0, 3.0], dtype=torch.float64)
    )
    update = {"trunk.w": torch.tensor([[4.0, 8.0], [0.0, 0.0]], dtype=torch.float64)}
    update["loss.bias"] = torch.tensor([2.0, 0.0], dtype=torch.float64)
    collected.add(Block([0, 1], {}, update, torch.zeros(2, 2, 1)), torch.tensor([0, 1]))
    # p = 1/4 and 3/4, a = 4 and 0: tau = 1, and the mean of the updates over a is (1/4, 1/2).
    assert collected.value()["trunk.w"].tolist() == pytest.approx([0.25, 0.5])
    assert float(collected.value()["loss.bias"]) == pytest.approx(0.125)


def test_in_round_one_feddyn_goes_twice_as_far_as_fedprox() -> None:
    (prox,), (dyn,) = path(quadratic(fedprox(0.7)), 1), path(quadratic(feddyn(0.7)), 1)
    assert dyn == pytest.approx(2 * prox)


def test_the_duals_of_feddyn_end_where_scaffolds_variates_do() -> None:
    ends = []
    for algorithm, slot in ((feddyn(1.0), DUAL), (scaffold(), CLIENT_CONTROL)):
        fed = quadratic(algorithm, images=(1, 3))
        ends.append(kept(fed, rounds(fed, 60)[0][-1], slot))
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_is_the_length_of_the_packed_messages_slot_by_slot(name: str) -> None:
    fed = images(name, LoopBackend)
    _, logs = rounds(fed, 2)
    algorithm, start = fed.server.algorithm, initial_state(fed)
    sent = fed.layout.sent(start.params)
    down = {"params": sent} | algorithm.broadcast(start.server, sent)
    up: Slots = {"params": sent}
    for block, _ in fed.train(fed.orders(start, fed.population.draw(fed.data, 0)), start.bank, Ranks()):
        up |= {slot: {key: value[0] for key, value in values.items()} for slot, values in block.sent.items()}
    log = logs[0]
    for slots, counted, clients in ((down, log.down, log.cohort.drawn), (up, log.up, log.cohort.clients)):
        assert counted == {slot: packed(values, fed.data.assignment[clients]) for slot, values in slots.items()}
    assert (len(log.up), len(log.down)) == {"scaffold": (1, 2), "scaffold algorithm.option=I": (2, 2)}.get(name, (1, 1))


def packed(params: Params, assignment: Tensor) -> int:
    return sum(len(pack(message(params, tasks))) for tasks in assignment)


def test_plain_fedavg_has_no_slot_of_its_own() -> None:
    fed = images("fedavg", StackedBackend)
    state = initial_state(fed)
    orders = fed.orders(state, fed.population.draw(fed.data, 0))
    assert orders.slots.keys() == {"params", MEMORY}
    assert orders.broadcast == {}
    job = CohortJob([0], 0, lambda clients: state.bank.load(clients, orders.slots), 0.1)
    (block,) = fed.backend(job, fed.data)
    assert block.slots.keys() == {"params", MEMORY}
    assert block.sent == {}


def test_clients_keep_variates_of_what_is_sent_and_only_once_they_have_trained() -> None:
    fed = images("scaffold", LoopBackend, keep="heads", sampling=only([2]))
    (state,), _ = rounds(fed, 1)
    rows = {key: value for key, value in state.bank.state_dict().items() if key.startswith(CLIENT_CONTROL)}
    assert all("/trunk." in key and len(value) == 1 for key, value in rows.items())
    assert state.bank.trained() == [2]


RUN = ["sampling.dropout=0.3", "partition=iid", "assignment=all", "partition.num_clients=3"]


def test_a_resumed_run_ends_as_one_never_interrupted(class_folders: Path, tmp_path: Path) -> None:
    config = small(class_folders, "algorithm=scaffold", *RUN)
    summary = train(config, tmp_path / "whole")
    assert summary["fit/bytes_down_control"] * 2 == summary["fit/bytes_down"]
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(summary)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_a_run_of_another_algorithm_is_not_resumed(class_folders: Path, tmp_path: Path) -> None:
    kill_after(small(class_folders, "algorithm=scaffold", *RUN), tmp_path / "run", rounds=2)
    with pytest.raises(ValueError, match="algorithm"):
        train(small(class_folders, "algorithm=feddyn", "resume=true", *RUN), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaffold", "scaffold algorithm.option=I", "fednova", "feddyn"])
def test_two_ranks_agree_with_one(name: str, class_folders: Path, tmp_path: Path) -> None:
    words = [*f"algorithm={name}".split(), *RUN]
    for folder, more in (("one", []), ("two", ["trainer.devices=2"])):
        train(small(class_folders, *words, *more), tmp_path / folder)
    one, two = (read_checkpoint(tmp_path / folder / "checkpoints" / "last.ckpt") for folder in ("one", "two"))
    for part in ("state_dict", "bank"):
        for key, value in one[part].items():
            # A variate is an update divided by the way of its steps, about .02 in the last round, and so is its rounding.
            assert torch.allclose(two[part][key], value, rtol=1e-5, atol=1e-6 if part == "state_dict" else 5e-5), key
