"""Balancing inside local steps, in every mode, against gradients taken one by one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra_zen import instantiate
from torch import Tensor

from mtl.balancing.cagrad import CAGrad
from mtl.balancing.contract import Balancer
from mtl.balancing.cr_mogm import CRMOGM
from mtl.balancing.excess_mtl import ExcessMTL
from mtl.balancing.famo import FAMO
from mtl.balancing.graddrop import GradDrop
from mtl.balancing.mgda import MGDA
from mtl.balancing.moco import MoCo
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.uncertainty import UW
from mtl.balancing.upgrad import UPGrad
from mtl.balancing.weighting import RLW, Equal, Fixed
from mtl.base.types import Params
from mtl.data.client_batches import LocalWork
from mtl.data.transforms import Normalise
from mtl.federation.aggregators.conflict_averse import ConflictAverse
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.auto import make_backend
from mtl.federation.clients.balance import Balance, make_balance
from mtl.federation.clients.bank import Bank
from mtl.federation.clients.batches import Batch
from mtl.federation.clients.contract import MEMORY, Training
from mtl.federation.clients.gradients import PlainSum
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.layout import Layout, is_head, shared
from mtl.federation.objective import Objective
from mtl.federation.population.sampling import Sampling
from mtl.federation.round import RoundLog, State, run_round
from mtl.federation.schedule import Schedule
from mtl.federation.server import Server, mean
from mtl.losses.pairs import TaskCounts
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.build import build_model
from mtl.run.members import WHOLE
from tests.composing import compose
from tests.federation.small_federations import build_federation, initial_state
from tests.federation.test_backends import FACES, assert_close, model_of, uneven

OBJECTIVE = Objective(FACES, Normalise())
COSINE, LINEAR = "groupnorm", "flat"
ALL = {name: member if isinstance(member, tuple) else (member, {}) for name, member in WHOLE["balancer"].items()}


def a_method(name: str) -> Balancer:
    kind, _ = ALL[name]
    if kind is Fixed:
        return Fixed((1.0, 2.0, 0.0, 0.5))
    method: Balancer = CRMOGM(MGDA()) if kind is CRMOGM else kind()
    return method.for_run(steps_per_round=3, num_rounds=20)


def a_batch(seed: int = 0, size: int = 5) -> Batch:
    """Task 3 has no known label; the last image is padding."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, 4, generator=rng) < 0.9
    mask[:, 3] = False
    return Batch(
        inputs=torch.randn(size, 1, 8, 8, generator=rng, dtype=torch.float64),
        targets=torch.rand(size, 4, generator=rng) < 0.5,
        mask=mask,
        valid=torch.arange(size) < size - 1,
        keys=torch.zeros(0, 2, dtype=torch.int32),
        draw_key=torch.tensor([1, 2], dtype=torch.int32),
        positives=torch.ones(4, dtype=torch.float64),
        negatives=torch.full((4,), 3.0, dtype=torch.float64),
        progress=torch.zeros((), dtype=torch.float64),
    )


def losses_of(model: MultiTaskModel, batch: Batch) -> Tensor:
    counts = TaskCounts(batch.positives, batch.negatives, batch.progress)
    return OBJECTIVE.losses(model, batch.inputs, batch.targets, batch.mask, batch.valid, counts).tasks


def one_by_one(model: MultiTaskModel, batch: Batch) -> list[Params]:
    """The gradient of each task's loss, by every parameter."""
    params = dict(model.named_parameters())
    tasks = losses_of(model, batch)
    return [
        dict(
            zip(params, torch.autograd.grad(loss, list(params.values()), retain_graph=True, materialize_grads=True), strict=True)
        )
        for loss in tasks
    ]


def balanced(method: Balancer, model: MultiTaskModel, batch: Batch, **options: object) -> tuple[Params, Tensor | None]:
    balance = make_balance(method, model, **options)  # type: ignore[arg-type]
    params = dict(model.named_parameters())
    step = balance.step(model, OBJECTIVE, stacked=False)
    batch = replace(batch, keys=torch.zeros(len(model.dropouts), 2, dtype=torch.int32))
    result = step.gradients(params, balance.memory(model.params(), 4), batch, {})
    return result.grads, result.conflict


def assert_same(grads: Params, expected: Params) -> None:
    assert grads.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("level", ["representation", "parameters"])
@pytest.mark.parametrize("kind", [COSINE, LINEAR, "dropout"])
def test_equal_weights_are_the_plain_sum(federation, kind: str, level: str) -> None:  # type: ignore[no-untyped-def]
    model = model_of(kind, federation, torch.float64).eval()
    batch = a_batch()
    grads, pairs = balanced(Equal(), model, batch, level=level, conflict=True)
    tasks = one_by_one(model, batch)
    assert_same(grads, {name: sum(task[name] for task in tasks) for name in grads})  # type: ignore[misc]
    assert pairs is not None
    assert pairs[2].tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]] or kind == LINEAR


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("kind", [COSINE, LINEAR])
def test_fixed_weights_by_hand(federation, kind: str, heads: bool) -> None:  # type: ignore[no-untyped-def]
    model = model_of(kind, federation, torch.float64)
    batch, weights = a_batch(), (1.0, 2.0, 0.25, 7.0)
    grads, _ = balanced(Fixed(weights), model, batch, heads=heads)
    tasks = one_by_one(model, batch)
    assert_same(
        grads,
        {
            name: sum((1 if is_head(name) and not heads else w) * task[name] for w, task in zip(weights, tasks, strict=True))
            if not name.startswith("loss.") or heads
            else sum(task[name] for task in tasks)
            for name in grads
        },  # type: ignore[misc]
    )


@pytest.mark.parametrize("method", [MGDA(), PCGrad(), CAGrad(), UPGrad()], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("level", ["representation", "parameters"])
def test_directions_are_those_of_gradients_one_by_one(federation, method: Balancer, level: str) -> None:  # type: ignore[no-untyped-def]
    """The Gramian from the heads is that of explicit gradients of the features; at the level of parameters it is that of the trunk."""
    model = model_of(COSINE, federation, torch.float64)
    batch = a_batch()
    grads, pairs = balanced(method, model, batch, level=level, heads=False, conflict=True)
    tasks = one_by_one(model, batch)
    trunk = shared(grads)
    exact = torch.stack([torch.cat([task[name].flatten() for name in trunk]) for task in tasks])
    if level == "parameters":
        rows = exact
    else:
        features = model.trunk(batch.inputs).detach().requires_grad_()
        counts = TaskCounts(batch.positives, batch.negatives, batch.progress)
        terms = model.loss.terms(model.heads(features), counts)  # type: ignore[operator]
        losses = OBJECTIVE.reduce(terms, batch.targets, batch.mask, batch.valid).tasks
        rows = torch.stack([torch.autograd.grad(loss, features, retain_graph=True)[0].flatten() for loss in losses])
    gramian = rows @ rows.T
    active = torch.tensor([True, True, True, False])
    draw_shape = method.draw_shape(4, rows.shape[1])
    assert torch.Size(draw_shape).numel() == 0 or isinstance(method, PCGrad)
    if isinstance(method, PCGrad):
        return  # its order is drawn: compared between backends below
    weights, _ = method.weigh({}, losses_of(model, batch).detach(), gramian, active, torch.zeros(0))
    assert_same(
        {name: grads[name] for name in trunk},
        {name: sum(w * task[name] for w, task in zip(weights, tasks, strict=True)) for name in trunk},  # type: ignore[misc]
    )
    length = rows[:3].norm(dim=1)
    assert pairs is not None
    torch.testing.assert_close(
        pairs[0, :3, :3].fill_diagonal_(1), gramian[:3, :3] / length / length[:, None], rtol=1e-5, atol=1e-7
    )


def rounds(  # one setting, several rounds
    make: type[LoopBackend] | type[StackedBackend],
    method: Balancer,
    *,
    level: str = "auto",
    sizes: tuple[int, ...] = (5, 2, 7),
    server: Server | None = None,
    conflict: bool = True,
    count: int = 3,
    sampling: Sampling | None = None,
    then: State | None = None,
    first: int = 0,
) -> tuple[State, RoundLog]:
    data = uneven(list(sizes), 3)
    model = model_of(COSINE, data, torch.float64)
    rule = make_balance(method, model, level=level, conflict=conflict)
    training = Training(model, OBJECTIVE, LocalSGD(), LocalWork(batch_size=3), 0, rule)
    schedule = Schedule("cosine")
    fed = build_federation(data, training, make, schedule=schedule, sampling=sampling, server=server, keep="heads")
    state = then or initial_state(fed)
    for round in range(first, first + count):
        state, log = run_round(fed, state, round)
    return state, log


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_balancer_is_the_same_in_both_backends(name: str) -> None:
    method = a_method(name)
    loop, stacked = (rounds(backend, method, count=2) for backend in (LoopBackend, StackedBackend))
    assert_close(loop[0], stacked[0], 1e-7)
    if loop[1].extra["conflict"][2].any():
        torch.testing.assert_close(loop[1].extra["conflict"], stacked[1].extra["conflict"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", [MGDA(), GradDrop(), ExcessMTL(), MoCo()], ids=lambda method: type(method).__name__)
def test_exact_gradients_are_the_same_in_both_backends(method: Balancer) -> None:
    loop, stacked = (rounds(backend, method, level="parameters")[0] for backend in (LoopBackend, StackedBackend))
    assert_close(loop, stacked, 1e-7)


@pytest.mark.parametrize("method", [FAMO(), UW(), RLW(), MoCo()], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("backend", [LoopBackend, StackedBackend])
def test_a_balancer_remembers_over_rounds_and_a_checkpoint(
    method: Balancer, backend: type[LoopBackend] | type[StackedBackend]
) -> None:
    through, _ = rounds(backend, method, count=3)
    before, _ = rounds(backend, method, count=2)
    bank_state = before.bank.state_dict()
    fresh, _ = rounds(backend, method, count=0 + 1)  # a bank of the same shape, with other content
    fresh.bank.load_state_dict(bank_state)
    after, _ = rounds(backend, method, then=State(before.server, fresh.bank), first=2, count=1)
    assert_close(through, after, 0.0)
    if method.needs == "losses" and not isinstance(method, RLW):
        memories = [value for name, value in bank_state.items() if name.startswith(f"{MEMORY}/")]
        assert any(value.any() for value in memories)


def test_a_client_that_drops_out_forgets_what_its_balancer_learned() -> None:
    sampling = Sampling(dropout=0.5)
    state, log = rounds(LoopBackend, UW(), count=1, sampling=sampling)
    assert 0 < len(log.cohort.clients) < len(log.cohort.drawn)
    assert state.bank.state_dict()["clients"].tolist() == sorted(log.cohort.clients)


def test_a_server_that_weighs_all_clients_alike_is_fedavg() -> None:
    plain, _ = rounds(LoopBackend, Equal(), conflict=False)
    balanced, _ = rounds(LoopBackend, Equal(), conflict=False, server=mean(balancer=Equal()))
    assert_close(plain, balanced, 1e-12)
    other, _ = rounds(LoopBackend, Equal(), conflict=False, server=mean(balancer=MGDA()))
    with pytest.raises(AssertionError):
        assert_close(plain, other, 1e-3)


def test_the_server_solves_a_conflict_of_two_clients_by_hand() -> None:
    """MGDA of (1, 0) and (0, 2): the shortest vector of the segment between them is (.8, .4)."""
    updates = {"trunk.a": torch.tensor([[1.0], [0.0]]), "trunk.b": torch.tensor([[0.0], [2.0]])}
    aggregator = mean(balancer=MGDA()).aggregator
    assert isinstance(aggregator, ConflictAverse)
    update = aggregator.combine(updates, torch.ones(2), torch.tensor([3.0, 3.0]), seed=0, round=0)
    assert update["trunk.a"].item() == pytest.approx(0.8)
    assert update["trunk.b"].item() == pytest.approx(0.4)


@pytest.mark.parametrize("method", [UW(), FAMO(), MoCo(), Fixed((1.0, 2.0))], ids=lambda method: type(method).__name__)
def test_the_server_refuses_a_balancer_that_remembers(method: Balancer) -> None:
    with pytest.raises(ValueError, match=r"server\.balancer must have no state"):
        mean(balancer=method)


def test_what_cannot_be_is_refused(federation) -> None:  # type: ignore[no-untyped-def]
    model = model_of(LINEAR, federation)
    with pytest.raises(ValueError, match=r"balance\.level must be parameters: MoCo keeps gradients in its state"):
        make_balance(MoCo(), model, level="representation")
    with pytest.raises(ValueError, match=r"balance\.level must be auto or one of representation, parameters, got trunk"):
        make_balance(MGDA(), model, level="trunk")
    with pytest.raises(ValueError, match=r"balancer\.weights must be one per task, 4, got 1"):
        Balance(Fixed((1.0,)), "representation", True).memory(model.params(), 4)
    training = Training(model, OBJECTIVE, LocalSGD(), LocalWork(), 0, make_balance(MGDA(), model))
    with pytest.raises(ValueError, match=r"a step balanced by MGDA cannot be compiled: use engine\.backend=vmap"):
        make_backend("compiled", training, num_rounds=1)
    assert make_balance(Equal(), model) == PlainSum()


@pytest.mark.parametrize("architecture", ["mmoe", "cross_stitch", "mtan"])
def test_architectures_are_balanced_on_exact_gradients(federation, architecture: str) -> None:  # type: ignore[no-untyped-def]
    words = [f"architecture={architecture}", "trunk.channels=[8]", "trunk.width=8", "heads=linear", "loss=bce"]
    model = build_model(compose(words), federation.image_shape, federation.tasks, federation.num_exclusive).double().eval()
    batch = a_batch()
    with pytest.raises(ValueError, match=r"balance\.level must be parameters: the tasks do not read the same features"):
        make_balance(MGDA(), model, level="representation")
    grads, _ = balanced(Fixed((1.0, 2.0, 0.5, 1.0)), model, batch, conflict=True, heads=True)
    tasks = one_by_one(model, batch)
    assert_same(grads, {name: sum(w * t[name] for w, t in zip((1, 2, 0.5, 1), tasks, strict=True)) for name in grads})  # type: ignore[misc]


def test_all_tasks_masked_move_nothing(federation) -> None:  # type: ignore[no-untyped-def]
    model = model_of(COSINE, federation, torch.float64)
    batch = replace(a_batch(), mask=torch.zeros(5, 4, dtype=torch.bool))
    for name in ALL:
        grads, _ = balanced(a_method(name), model, batch, conflict=True)
        assert all(not value.any() for value in grads.values()), name


def test_a_member_is_what_its_name_says() -> None:
    assert instantiate(compose(["balancer=fixed", "balancer.weights=[1,2]"]).balancer) == Fixed([1, 2])  # type: ignore[arg-type]
    assert instantiate(compose(["balancer=cagrad", "balancer.c=.2"]).balancer) == CAGrad(0.2)


def test_the_server_takes_any_balancer_by_its_name() -> None:
    assert instantiate(compose(["server=conflict_averse"]).server).aggregator.balancer == CAGrad()
    words = ["server=conflict_averse", "balancer@server.balancer=upgrad"]
    assert instantiate(compose(words).server) == mean(balancer=UPGrad())


def test_the_own_state_lies_beside_the_parameters(tmp_path: Path, federation) -> None:  # type: ignore[no-untyped-def]
    model = model_of(LINEAR, federation)
    rule = make_balance(UW(), model)
    slots = {"params": model.params(), MEMORY: rule.memory(model.params(), 4)}
    bank = Bank(Layout("nothing"), slots, federation.assignment)
    assert bank.num_bytes == 2 * 4 * 4
    assert bank.client_slots(slots)["params"] == {}
    assert bank.load([0], slots)["params"].keys() == model.params().keys()
