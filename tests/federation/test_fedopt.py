"""FedAdam, FedYogi and FedAdagrad: known answers, heads that nobody trains, resumed runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mtl.base.types import Params, Slots
from mtl.federation.aggregators.weighted_mean import WeightedMean
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedopt import FIRST, ROUNDS, SECOND, FedAdagrad, FedAdam, FedOpt, FedYogi
from mtl.federation.clients.contract import Block
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.layout import Layout
from mtl.federation.population.sampling import Sampling
from mtl.run.config import compose
from mtl.run.members import WHOLE
from tests.federation.small_federations import make_orders
from tests.federation.test_backends import model_of, uneven
from tests.federation.test_views import rounds, views_of
from tests.run.test_train import kill_after, numbers, small, train, without_time

TASKS = 3
SERVERS = {"fedadagrad": FedAdagrad, "fedadam": FedAdam, "fedyogi": FedYogi}


def start_of(size: int = 1) -> Params:
    return {
        "trunk.w": torch.zeros(size, dtype=torch.float64),
        "heads.w": torch.zeros(TASKS, size, dtype=torch.float64),
        "heads.b": torch.zeros(TASKS, dtype=torch.float64),
    }


def step(server: FedOpt, state: Slots, direction: Params, tasks: Sequence[bool] = (True,) * TASKS, clients: int = 1) -> Slots:
    """The state after a round in which each client sends `direction` and trains `tasks`."""
    trained = torch.tensor([tasks] * clients, dtype=torch.bool).view(-1, TASKS)
    update = WeightedMean().collect(make_orders(state["params"], trained, [1] * clients))
    for client in range(clients):
        block = Block([client], {}, {name: value[None] for name, value in direction.items()}, torch.zeros(1, 2, TASKS))
        update.add(block, torch.tensor([client]))
    return server.apply(state, state["params"], update)


def path_of(server: FedOpt, directions: Sequence[float]) -> list[float]:
    """Where a coordinate of the trunk is after each round, from 0."""
    state, path = server.init(start_of(), Layout()), []
    for direction in directions:
        state = step(server, state, {name: torch.full_like(value, direction) for name, value in start_of().items()})
        path.append(state["params"]["trunk.w"].item())
        assert state["params"]["heads.w"].flatten().tolist() == [path[-1]] * TASKS
    return path


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (FedAdam(0.1, bias_correction=False), [0.099010, 0.134611, 0.187848]),
        (FedAdam(0.1), [0.099010, 0.125442, 0.159298]),
        (FedYogi(0.1, bias_correction=False), [0.099010, 0.134470, 0.187254]),
        (FedAdagrad(0.1), [0.099900, 0.055219, 0.077021]),
    ],
)
def test_known_answers_after_updates_of_1_minus_half_and_a_quarter(server: FedOpt, expected: list[float]) -> None:
    # Computed in float64 from the equations, tau .001, beta .9 and .99 (FedAdagrad 0).
    assert path_of(server, [1.0, -0.5, 0.25]) == pytest.approx(expected, abs=5.1e-7)


def test_bias_correction_scales_the_steps_of_yogi_as_those_of_adam() -> None:
    directions = [1.0, -0.5, 0.25, 2.0]
    for make in (FedAdam, FedYogi):
        plain, corrected = (
            np.diff([0.0, *path_of(make(0.1, bias_correction=correction), directions)]) for correction in (False, True)
        )
        by_hand = [(1 - 0.99**t) ** 0.5 / (1 - 0.9**t) for t in range(1, 5)]
        assert by_hand[1] == pytest.approx(0.742460, abs=5e-7)
        assert corrected / plain == pytest.approx(by_hand)


def test_without_correction_a_constant_update_is_twice_as_long_in_the_tenth_round() -> None:
    steps = np.diff([0.0, *path_of(FedAdam(0.1, tau=1e-9, bias_correction=False), [1.0] * 10)])
    assert steps[0] == pytest.approx(0.1)
    assert steps[9] == pytest.approx(0.2, rel=0.06)
    assert np.diff(path_of(FedAdam(0.1, tau=1e-9), [1.0] * 10)) == pytest.approx([0.1] * 9)


@pytest.mark.parametrize(
    ("server", "second"),
    [
        (FedAdam(0.05, 0.8, 0.01, 0.95), lambda v, s: 0.95 * v + 0.05 * s),
        (FedYogi(0.05, 0.8, 0.01, 0.95), lambda v, s: np.where(v > s, v - 0.05 * s, np.where(v < s, v + 0.05 * s, v))),
        (FedAdagrad(0.05, 0.8, 0.01), lambda v, s: v + s),
    ],
)
def test_four_rounds_of_100000_coordinates_agree_with_numpy(server: FedOpt, second: Callable[..., np.ndarray]) -> None:
    rng, size = np.random.default_rng(0), 100_000
    params = {"trunk.w": torch.zeros(size), "heads.w": torch.zeros(TASKS, 1)}
    state = server.init(params, Layout())
    x = m = v = np.zeros(size)
    for t in range(1, 5):
        update = rng.normal(size=size).astype(np.float32) * np.float32(10.0) ** rng.integers(-6, 7, size)
        update[:100] = 0
        state = step(server, state, {"trunk.w": torch.tensor(update), "heads.w": torch.zeros(TASKS, 1)}, clients=2)
        wide = update.astype(np.float64)
        m, v = 0.8 * m + 0.2 * wide, second(v, wide**2)
        factor = (1 - 0.95**t) ** 0.5 / (1 - 0.8**t) if isinstance(server, FedAdam) else 1.0
        x = x + 0.05 * factor * m / (v**0.5 + 0.01)
    assert np.allclose(state["params"]["trunk.w"].numpy(), x, rtol=2e-5, atol=1e-6)
    assert not state["params"]["trunk.w"][:100].any()


@pytest.mark.parametrize("make", SERVERS.values(), ids=SERVERS)
def test_a_head_that_nobody_trains_waits_and_then_steps_as_one_that_starts(make: Callable[[], FedOpt]) -> None:
    ones = {name: torch.ones_like(value) for name, value in start_of(2).items()}
    server = make()
    first = step(server, server.init(start_of(2), Layout()), ones)
    # In two rounds nobody trains the second head; what its rows hold does not matter.
    spoilt = {name: 2 * value for name, value in ones.items()}
    spoilt["heads.w"][1] = torch.tensor([torch.nan, 9.0])
    state = first
    for _ in range(2):
        state = step(server, state, spoilt, (True, False, True))
        for slot in ("params", FIRST, SECOND, ROUNDS):
            for name in ("heads.w", "heads.b"):
                assert torch.equal(state[slot][name][1], first[slot][name][1]), (slot, name)
                assert not torch.equal(state[slot][name][0], first[slot][name][0]), (slot, name)
    assert state[ROUNDS]["heads.w"].flatten().tolist() == [3, 1, 3]
    assert state[ROUNDS]["trunk.w"].item() == 3
    late, second = step(server, state, ones), step(server, first, ones)
    assert torch.equal(late["params"]["heads.w"][1], second["params"]["heads.w"][1])


@pytest.mark.parametrize("make", SERVERS.values(), ids=SERVERS)
def test_a_round_that_nobody_came_back_from_changes_nothing(make: Callable[[], FedOpt]) -> None:
    server = make()
    before = step(server, server.init(start_of(), Layout()), {name: torch.ones_like(value) for name, value in start_of().items()})
    after = step(server, before, {}, clients=0)
    assert all(torch.equal(after[slot][name], value) for slot, values in before.items() for name, value in values.items())


def test_a_coordinate_that_only_wider_models_have_counts_its_own_rounds() -> None:
    data = uneven([5, 3, 7], 2)
    model = model_of("dropout", data)
    views = views_of(model, data, [0, 1, 1])

    class Narrow(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:  # type: ignore[override]
            return ([0, 1, 2], [0, 1, 2]) if round == 0 else ([1, 2], [1, 2])

    one, three = (
        rounds(LoopBackend, data, model, views, count=count, sampling=Narrow(), algorithm=Algorithm(FedYogi()))[0]
        for count in (1, 3)
    )
    assert views.levels[1].index
    for name, place in views.levels[1].index.items():
        beyond = torch.ones(model.params()[name].numel(), dtype=torch.bool)
        beyond[place.flatten()] = False
        for slot in ("params", FIRST, SECOND):
            assert torch.equal(one.server[slot][name].flatten()[beyond], three.server[slot][name].flatten()[beyond]), name
        counted = three.server[ROUNDS][name].expand_as(model.params()[name]).flatten()
        assert set(counted[beyond].tolist()) <= {0, 1}
        if not name.startswith("heads"):
            assert set(counted[~beyond].tolist()) == {3}


@pytest.mark.parametrize("make", SERVERS.values(), ids=SERVERS)
def test_an_update_of_zero_does_not_move_and_one_that_is_not_finite_stays_in_its_coordinate(make: Callable[[], FedOpt]) -> None:
    server = make()
    directions = {name: torch.zeros_like(value) for name, value in start_of(3).items()}
    assert not any(value.any() for value in step(server, server.init(start_of(3), Layout()), directions)["params"].values())
    directions["trunk.w"] = torch.tensor([1.0, torch.nan, 1e30], dtype=torch.float64)
    moved = step(server, server.init(start_of(3), Layout()), directions)["params"]["trunk.w"]
    assert moved.isnan().tolist() == [False, True, False]
    # The first step is the learning rate, however long the update is.
    assert moved[2].item() == pytest.approx(server.learning_rate)


@pytest.mark.parametrize("name", SERVERS)
def test_a_resumed_run_has_the_moments_of_one_never_interrupted_bit_for_bit(
    class_folders: Path, tmp_path: Path, name: str
) -> None:
    config = small(class_folders, f"algorithm={name}", "sampling.dropout=.3", "rounds=4", "checkpoint_every=1")
    whole = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    one, other = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=False)["server_state"] for run in ("whole", "cut")
    )
    assert one.keys() == other.keys() == {FIRST, SECOND, ROUNDS}
    for slot, values in one.items():
        assert any(value.any() for value in values.values()), slot
        assert all(torch.equal(value, other[slot][parameter]) for parameter, value in values.items()), slot


def test_each_is_a_member_of_its_group_with_its_defaults() -> None:
    assert {name: WHOLE["algorithm"][name] for name in SERVERS} == SERVERS
    chosen = compose(["algorithm=fedyogi"]).algorithm
    assert (chosen.learning_rate, chosen.beta1, chosen.beta2, chosen.tau, chosen.bias_correction) == (0.01, 0.9, 0.99, 1e-3, True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAdam(learning_rate=0.0), "algorithm.learning_rate must be > 0, got 0.0"),
        (lambda: FedYogi(tau=-1.0), "algorithm.tau must be > 0, got -1.0"),
        (lambda: FedAdagrad(beta1=1.0), r"algorithm.beta1 must be in \[0, 1\), got 1.0"),
        (lambda: FedYogi(beta2=1.5), r"algorithm.beta2 must be in \[0, 1\), got 1.5"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], FedOpt], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
