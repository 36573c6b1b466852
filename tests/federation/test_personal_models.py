"""Algorithms with a model for each client: known answers, and laws of their own beside those of `test_algorithm_laws`."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mtl.data.client_batches import LocalWork
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.algorithms.algorithm import Algorithm, FineTuning
from mtl.federation.algorithms.ditto import PERSONAL, ditto
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.fedrep import fedrep
from mtl.federation.algorithms.finetune import finetune
from mtl.federation.algorithms.local_adam import LocalAdamW
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.algorithms.pfedme import pfedme
from mtl.federation.client_models import personal_models, tuned_models
from mtl.federation.clients.bank import Bank
from mtl.federation.clients.contract import Backend, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.inference import Inference
from mtl.federation.objective import Objective
from mtl.federation.round import Federation
from mtl.losses.pairs import PairLoss, TaskCounts
from mtl.models.multi_task_model import MultiTaskModel
from tests.federation.quadratics import SGD, kept, only, path, quadratic, quadratic_data, rounds
from tests.federation.small_federations import build_federation, initial_state
from tests.federation.test_algorithm_laws import MOMENTUM, images
from tests.federation.test_backends import FACES, model_of, uneven

BACKENDS = [LoopBackend, StackedBackend]


@pytest.mark.parametrize("make", BACKENDS)
def test_ditto_on_problem_q(make: Callable[[Training], Backend]) -> None:
    fed = quadratic(ditto(pull=1.0), make=make)
    (first,), _ = rounds(fed, 1)
    assert kept(fed, first, PERSONAL).flatten().tolist() == pytest.approx([0.336160, -0.775000], abs=1e-6)
    (*_, last), _ = rounds(fed, 199, first, first=1)
    assert float(last.params["trunk.x"]) == pytest.approx(-0.385005, abs=1e-6)
    assert kept(fed, last, PERSONAL).flatten().tolist() == pytest.approx([0.307498, -0.877001], abs=1e-6)


def test_pfedme_solved_exactly_on_problem_q() -> None:
    """x ends where FedProx does that is solved exactly."""
    fed = quadratic(
        pfedme(pull=1.0, inner_steps=80, inner_rate=0.1), client=replace(SGD, learning_rate=1.0), work=LocalWork(64, steps=1)
    )
    states, _ = rounds(fed, 25)
    assert float(states[-1].params["trunk.x"]) == pytest.approx(-3 / 13, abs=1e-6)
    assert kept(fed, states[-1], PERSONAL).flatten().tolist() == pytest.approx([0.384615, -0.846154], abs=1e-6)


class Direction(nn.Module):
    """B, the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor([0.5, math.sqrt(0.75)], dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return self.b.expand(len(images), 2)


class Distances(nn.Module):
    """|B w_t - B* w*_t| of each subtask t, with B* = (1, 0) and w* = 1, 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        goal = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
        return (features[:, None] * self.w[:, None] - goal).square().sum(-1).sqrt()


class HalfSquare(PairLoss):
    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        return logits.square() / 2, logits.square() / 2


def test_the_trunk_of_fedrep_turns_to_the_common_direction_as_computed_by_hand() -> None:
    """Two clients with exact heads and one trunk step of .1: the sine of the angle between B and B*, which starts at 60 degrees."""
    data = quadratic_data([[0.0, 0.0]] * 2, [[1.0, 1.0]] * 2, images=(1, 1), assignment=torch.eye(2, dtype=torch.bool))
    model = MultiTaskModel(Direction(), Distances(), HalfSquare())
    objective = Objective(Augmentation(flip=False), Normalise(mean=[0.0], deviation=[1.0]))
    client = replace(SGD, head_scale=5.0)
    training = Training(model, objective, client, LocalWork(64, steps=101), 0)
    fed = build_federation(data, training, LoopBackend, algorithm=fedrep(head_share=100 / 101))
    sines = [float(state.params["trunk.b"][1] / state.params["trunk.b"].norm()) for state in rounds(fed, 3)[0]]
    assert sines == pytest.approx([0.807183, 0.732620, 0.645153], abs=1e-6)


@pytest.mark.parametrize("make", BACKENDS)
def test_ditto_without_a_pull_is_local_training(make: Callable[[Training], Backend]) -> None:
    own = images("ditto algorithm.pull=0", make)
    alone = images("fedavg", make, keep="all")
    (*_, state), (*_, local) = (rounds(fed, 3)[0] for fed in (own, alone))
    personal, params = (
        {key.partition("/")[2]: value for key, value in end.bank.state_dict().items() if key.startswith(slot)}
        for end, slot in ((state, PERSONAL), (local, "params"))
    )
    assert personal.keys() == params.keys()
    for name, value in personal.items():
        assert torch.allclose(value, params[name], rtol=1e-12, atol=1e-12), name


def test_the_global_model_of_ditto_is_that_of_fedavg_bit_for_bit() -> None:
    one, other = (rounds(images(name, StackedBackend), 3)[0][-1].params for name in ("ditto", "fedavg"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_client_that_drops_out_keeps_its_personal_model() -> None:
    fed = images("ditto", LoopBackend, sampling=only([0, 2]))
    (before,), _ = rounds(fed, 1)
    rows = {key: value.clone() for key, value in before.bank.state_dict().items()}
    dropping = replace(fed, population=replace(fed.population, sampling=only([0, 1, 2], [1])))
    (after,), _ = rounds(dropping, 1, before, first=1)
    assert after.bank.trained() == [0, 1, 2]
    for key, value in rows.items():  # rows stand in the order in which clients first trained
        assert torch.equal(after.bank.state_dict()[key][: len(value)], value), key


@pytest.mark.parametrize("make", BACKENDS)
@pytest.mark.parametrize("client", [MOMENTUM, LocalAdamW(learning_rate=0.01, weight_decay=0.1)])
def test_fedrep_moves_nothing_but_what_it_trains(make: Callable[[Training], Backend], client: LocalSGD) -> None:
    for share, still in ((1.0, "trunk."), (0.0, "heads.")):
        fed = images(f"fedrep algorithm.head_share={share}", make, client=client)
        start = initial_state(fed)
        first = {name: value.clone() for name, value in start.params.items()}
        (*_, state), _ = rounds(fed, 2, start)
        rows = state.bank.load(state.bank.trained(), fed.training.slots(state.params, 4, fed.layout))["params"]
        moved = {name for name, value in rows.items() if not torch.equal(value, first[name].expand_as(value))}
        assert moved
        assert not {name for name in moved if name.startswith(still)}


@pytest.mark.parametrize("make", BACKENDS)
@pytest.mark.parametrize("client", [replace(MOMENTUM, clip=0.05), LocalAdamW(learning_rate=0.01, weight_decay=0.1, clip=0.05)])
def test_the_head_steps_of_fedrep_are_those_with_a_frozen_trunk(make: Callable[[Training], Backend], client: LocalSGD) -> None:
    names = frozenset(name for name in model_of("dropout", uneven([2], 1)).params() if not name.startswith("heads."))
    fed = images("fedrep algorithm.head_share=1", make, client=client)
    frozen = images("fedper", make, client=client, frozen=lambda round: names)
    one, other = (rounds(federation, 2)[0][-1].bank.state_dict() for federation in (fed, frozen))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-12, atol=1e-12), name


def test_fedrep_trains_the_heads_first_and_each_client_by_its_number_of_steps() -> None:
    """Epochs of one image a step: clients of 2 and 5 images take 1 and 3 head steps (half of them, rounded), then the trunk moves."""
    seen: list[tuple[int, bool, bool]] = []
    algorithm = fedrep(head_share=0.5)
    step = algorithm.client.step

    def watched(slots, state, gradients, optimizer, rate):  # type: ignore[no-untyped-def]
        before = {name: value.clone() for name, value in slots["params"].items()}
        step(slots, state, gradients, optimizer, rate)
        moved = {name for name, value in slots["params"].items() if not torch.equal(value, before[name])}
        count = int(slots["steps"]["count"])
        seen.append((count, any(name.startswith("heads") for name in moved), any(name.startswith("trunk") for name in moved)))

    object.__setattr__(algorithm.client, "step", watched)
    data = uneven([2, 5], 1)
    training = Training(model_of("dropout", data), Objective(FACES, Normalise()), MOMENTUM, LocalWork(batch_size=1, epochs=1), 0)
    rounds(build_federation(data, training, LoopBackend, algorithm=algorithm), 1)
    heads, trunk = (True, False), (False, True)
    expected = [(2, *heads), (2, *trunk)] + [(5, *heads)] * 3 + [(5, *trunk)] * 2
    assert seen == expected


def test_fedper_is_keep_heads_bit_for_bit() -> None:
    named = rounds(images("fedper", StackedBackend), 3)[0][-1]
    option = rounds(images("fedavg", StackedBackend, keep="heads"), 3)[0][-1]
    for one, other in ((named.params, option.params), (named.bank.state_dict(), option.bank.state_dict())):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_fedbn_keeps_the_norm_layers_and_sends_the_rest() -> None:
    data = uneven([4, 6, 5], 2)
    model = model_of("groupnorm", data, torch.float64)
    training = Training(model, Objective(FACES, Normalise()), MOMENTUM, LocalWork(batch_size=3), 0)
    fed = build_federation(data, training, StackedBackend, keep="norms")
    assert model.norms
    assert model.norms < model.params().keys()
    start = initial_state(fed)
    first = {name: value.clone() for name, value in start.params.items()}
    (*_, state), logs = rounds(fed, 2, start)
    assert all(torch.equal(state.params[name], first[name]) for name in model.norms)
    assert {key.partition("/")[2] for key in state.bank.state_dict() if "/" in key} == model.norms
    full = build_federation(data, training, StackedBackend)
    saved = 3 * sum(first[name].numel() * 8 for name in model.norms)
    assert rounds(full, 1)[1][0].bytes_up - logs[0].bytes_up == saved


def test_before_its_first_round_a_client_answers_with_the_global_model() -> None:
    fed = images("ditto", LoopBackend, sampling=only([0]))
    (*_, state), _ = rounds(fed, 2)
    ((_, params),) = personal_models(fed, state, [3], stacked=False)
    assert all(torch.equal(value[0], state.params[name]) for name, value in params.items())


@pytest.mark.parametrize("stacked", [False, True])
def test_fine_tuning_is_a_few_local_steps_from_the_global_model(stacked: bool) -> None:
    fed = quadratic(finetune(steps=3))
    (*_, state), _ = rounds(fed, 100)
    x = float(state.params["trunk.x"])
    tuned = {
        client: float(value)
        for clients, params in tuned_models(fed, state, [0, 1], FineTuning(3), stacked=stacked)
        for client, value in zip(clients, params["trunk.x"], strict=True)
    }
    assert tuned == pytest.approx({0: 1 + (x - 1) * 0.9**3, 1: -1 + (x + 1) * 0.6**3})
    assert float(state.params["trunk.x"]) == x


@pytest.mark.parametrize("name", ["ditto", "pfedme", "fedrep"])
def test_the_scores_of_own_images_are_the_same_stacked_or_one_by_one(name: str) -> None:
    fed = images(name, LoopBackend)
    (*_, state), _ = rounds(fed, 2)
    inference = Inference(fed.training.model, fed.training.objective)
    index = [torch.tensor(rows) for rows in ([3], [0, 5, 7, 2], [1, 1], [9, 8, 4])]
    ((_, params),) = personal_models(fed, state, range(4), stacked=True)
    alone, together = (inference.own_scores(params, fed.data.images, index, stacked=stacked) for stacked in (False, True))
    for one, other, rows in zip(alone, together, index, strict=True):
        assert one.shape == (len(rows), 4)
        assert torch.allclose(one, other, atol=1e-6)


def test_a_hundred_thousand_clients_take_memory_only_once_they_train() -> None:
    params = {"trunk.w": torch.zeros(1000), "heads.w": torch.zeros(4, 10)}
    fed_like: Federation = images("ditto", LoopBackend)
    tracemalloc.start()
    slots = {"params": params} | fed_like.training.client.first(params)
    bank = Bank(fed_like.layout, slots, torch.ones(100_000, 4, dtype=torch.bool))
    assert bank.num_bytes == 100_000 * (1000 + 40) * 4
    assert bank.load([5, 99_999], slots)[PERSONAL]["trunk.w"].untyped_storage().nbytes() == 4000
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert bank.trained() == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ditto(pull=-0.1), "algorithm.pull must be >= 0, got -0.1"),
        (lambda: fedrep(head_share=1.5), r"algorithm.head_share must be in \[0, 1\], got 1.5"),
        (lambda: finetune(steps=0), "algorithm.steps must be >= 1, got 0"),
        (lambda: finetune(tuning_rate=0.0), "algorithm.tuning_rate must be > 0 or null, got 0.0"),
        (lambda: pfedme(pull=0.0), "algorithm.pull must be > 0, got 0.0"),
        (lambda: pfedme(inner_steps=0), "algorithm.inner_steps must be >= 1, got 0"),
        (lambda: pfedme(inner_rate=-1.0), "algorithm.inner_rate must be > 0, got -1.0"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], Algorithm], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_second_gradient_is_counted() -> None:
    assert (ditto().client.passes, pfedme(inner_steps=7).client.passes, fedrep().client.passes) == (2, 7, 1)
    assert path(quadratic(ditto()), 1) == path(quadratic(fedavg()), 1)
