"""Asynchronous rounds: who arrives when, on which version of the model, and what the server makes of it.

The numbers of the three clients (durations 1, 2 and 5, minima at 1, 2 and 4, one step of half the way) come from the equations, iterated
by hand in float64 over a list of arrivals.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedasync import FedAsync, fedasync
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.fedbuff import FedBuff, fedbuff
from mtl.federation.clients.contract import Backend, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.inference import Inference
from mtl.federation.message import client_bytes
from mtl.federation.population.arrivals import Arrivals
from mtl.federation.population.sampling import Outcome, Sampling
from mtl.federation.ranks import Ranks
from mtl.federation.round import Federation, State, run_round
from mtl.federation.server import mean
from mtl.learning.federated import FederatedLearning
from tests.federation.quadratics import SGD, path, quadratic, rounds
from tests.federation.small_federations import initial_state
from tests.federation.test_backends import uneven
from tests.federation.test_fleet import sampling_of
from tests.federation.test_rounds import OBJECTIVE, assert_equal, make_fed, make_model

THREE = {"b": ((1.0,), (2.0,), (4.0,)), "h": ((1.0,),) * 3}
HALF = {"client": replace(SGD, learning_rate=0.5), "work": LocalWork(batch_size=64, steps=1)}


def three(algorithm: Algorithm, durations: list[float], **options: object) -> Federation:
    draws = algorithm.server.draws(sampling_of(durations))
    return quadratic(algorithm, sampling=draws, **THREE, **HALF, **options)  # type: ignore[arg-type]


def arrivals(durations: list[float], *, buffer: int, concurrency: int | None = None, **options: object) -> Arrivals:
    return Arrivals(sampling_of(durations, **options), concurrency=concurrency, buffer=buffer)  # type: ignore[arg-type]


def outcomes(draws: Arrivals, count: int) -> list[Outcome]:
    fleet = draws.fleet
    return [draws.outcome(len(fleet.workload), seed=fleet.seed, round=round) for round in range(count)]


def staleness(draws: Arrivals, count: int) -> list[int]:
    every = outcomes(draws, count)
    return [
        round - outcome.started.get(place, round) for round, outcome in enumerate(every) for place in range(len(outcome.returned))
    ]


def test_the_schedule_of_three_clients_is_by_hand() -> None:
    draws = arrivals([1, 2, 5], buffer=2)
    every = outcomes(draws, 5)
    assert [outcome.returned for outcome in every] == [[0, 0], [1, 0], [0, 1], [0, 2], [0, 1]]
    assert staleness(draws, 5) == [0, 0, 1, 0, 0, 1, 0, 3, 0, 1]
    assert [outcome.seconds for outcome in every] == [2, 1, 1, 1, 1]
    # In the first round all leave, and the first again at 1; at 2 both leave after the round has ended.
    assert [sorted(outcome.cohort) for outcome in every] == [[0, 0, 1, 2], [0, 1], [0], [0, 1], [0, 2]]
    assert [outcome.in_flight for outcome in every] == [{0}, {0, 1}, {0}, {3}, {4}]


@pytest.mark.parametrize("make", [LoopBackend, StackedBackend])
def test_fedbuff_and_fedasync_are_those_of_the_equations(make: Callable[[Training], Backend]) -> None:
    buffered = path(three(fedbuff(buffer=2), [1, 2, 5], make=make), 5)
    assert buffered == pytest.approx([0.5, 0.978553, 1.249080, 1.686810, 1.647853], abs=1e-6)
    assert path(three(fedasync(), [1, 2, 5], make=make), 10)[-1] == pytest.approx(1.260319, abs=1e-6)


def test_equal_clients_that_fill_the_buffer_make_rounds_of_fedavg_bit_for_bit() -> None:
    assert path(three(fedbuff(buffer=3), [1, 1, 1]), 4)[-1] == pytest.approx(2.187500, abs=1e-9)
    # Without the rule that arrivals come before departures it would be 2.555266.
    data = uneven([3, 8, 5, 2], seed=2)
    model, algorithm = make_model(data), fedbuff(buffer=4)
    buffered, _ = run(data, algorithm, 4, durations=[3, 3, 3, 3])
    fed = make_fed(data, model)
    state = initial_state(fed)
    for round in range(4):
        state, _ = run_round(fed, state, round)
    assert_equal(buffered.params, state.params)


def test_clients_count_by_how_often_they_come_back() -> None:
    short = {"client": replace(SGD, learning_rate=0.02), "work": LocalWork(batch_size=64, steps=1)}
    algorithm = fedbuff(buffer=1, staleness=0.0)
    draws = algorithm.server.draws(sampling_of([1, 2, 5]))
    values = path(quadratic(algorithm, sampling=draws, **THREE, **short), 510)  # type: ignore[arg-type]
    # Weights 1, 1/2 and 1/5 of the minima 1, 2 and 4; all alike it would be 7/3. There are 17 arrivals in ten seconds.
    assert sum(values[-17:]) / 17 == pytest.approx(28 / 17, abs=0.02)


@pytest.mark.parametrize(("concurrency", "buffer"), [(7, 1), (7, 3), (5, 5), (3, 2)])
def test_the_mean_staleness_is_that_of_the_other_clients_in_flight_over_the_buffer(concurrency: int, buffer: int) -> None:
    durations = [1 + 0.618034 * place + 0.001 * place**2 for place in range(7)]  # no two events at one instant
    draws = arrivals(durations, buffer=buffer, concurrency=concurrency)
    late = staleness(draws, 6000 // buffer)[600:]
    assert sum(late) / len(late) == pytest.approx((concurrency - 1) / buffer, rel=0.01)
    every = outcomes(draws, 6000 // buffer)
    if concurrency == 7:
        rate = sum(1 / duration for duration in durations) / buffer
        assert len(every) / sum(outcome.seconds for outcome in every) == pytest.approx(rate, rel=0.01)
    assert all(len(outcome.in_flight) <= concurrency for outcome in every)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 30),
)
@settings(max_examples=80, deadline=None)
def test_laws_of_the_schedule(durations: list[int], concurrency: int, buffer: int, dropout: float, seed: int) -> None:
    concurrency = min(concurrency, len(durations))
    buffer = min(buffer, concurrency)
    sampling = Sampling(dropout=dropout)
    draws = arrivals(list(durations), buffer=buffer, concurrency=concurrency, sampling=sampling, link=1.0, seed=seed)
    every = outcomes(draws, 12)
    # A run that is resumed asks for a later round first.
    again = arrivals(list(durations), buffer=buffer, concurrency=concurrency, sampling=sampling, link=1.0, seed=seed)
    assert again.outcome(len(durations), seed=seed, round=11).returned == every[11].returned
    flying: list[int] = []
    for round, outcome in enumerate(every):
        flying += outcome.cohort
        assert len(outcome.returned) == buffer
        assert all(start < round for start in outcome.started.values())
        for client in outcome.returned:
            assert client in flying
            flying.remove(client)
        assert max(outcome.in_flight, default=0) <= round
        for place, start in outcome.started.items():
            assert start in every[round - 1].in_flight, place
        if not dropout:
            assert len(set(flying)) == len(flying) <= concurrency
    if not dropout:
        work = [2 * (n + 2) + 8 * n + 2 for n in durations]  # joules: 2 W of idle, 8 W more at work, 1 W more on the link
        done = sum(work[client] for outcome in every for client in outcome.returned)
        spent = sum(float(outcome.joules.sum()) for outcome in every)
        assert done - 1e-6 <= spent <= done + sum(work[client] for client in flying) + 1e-6


def test_a_client_that_drops_out_makes_room_when_its_connection_breaks() -> None:
    sampling = Sampling(dropout=0.5)
    draws = arrivals([3], buffer=1, sampling=sampling, link=1.0)
    every = outcomes(draws, 30)
    # Each attempt that fails takes 1 + 3 seconds, the one that arrives 1 + 3 + 1.
    assert {outcome.seconds for outcome in every} <= {5 + 4 * failed for failed in range(12)}
    assert [len(outcome.cohort) for outcome in every] == [1 + (outcome.seconds - 5) / 4 for outcome in every]
    assert [float(outcome.joules.sum()) for outcome in every] == [36 + 33 * (len(outcome.cohort) - 1) for outcome in every]
    assert len({outcome.seconds for outcome in every}) > 2


def test_clients_that_wait_are_drawn_alike() -> None:
    every = outcomes(arrivals([1] * 6, buffer=1, concurrency=2), 1200)
    counts = torch.bincount(torch.tensor([outcome.returned[0] for outcome in every]), minlength=6)
    assert all(160 < count < 240 for count in counts.tolist())  # 200 each on average


def test_the_schedule_of_a_thousand_clients_costs_by_arrival() -> None:
    durations = [1 + (7919 * place % 1000) / 100 for place in range(1000)]

    def seconds(count: int) -> float:
        started = time.perf_counter()
        outcomes(arrivals(durations, buffer=10, concurrency=100), count)
        return time.perf_counter() - started

    assert min(seconds(200) for _ in range(3)) < 0.5  # 2,000 arrivals; 0.05 s on one core
    many, few = (min(seconds(count) for _ in range(3)) for count in (400, 100))
    assert many < 12 * few


def run(
    data: FederatedData,
    algorithm: Algorithm,
    count: int,
    *,
    durations: list[float],
    backend: Callable[[Training], Backend] = LoopBackend,
    **changed: object,
) -> tuple[State, list[float]]:
    """The state after some rounds, and the bytes on the link."""
    draws = algorithm.server.draws(sampling_of(durations))
    fed = make_fed(data, make_model(data), algorithm=algorithm, sampling=draws, backend=backend, **changed)
    state, sent = initial_state(fed), []
    for round in range(count):
        state, log = run_round(fed, state, round)
        sent += [log.bytes_down, log.bytes_up]
    return state, sent


@pytest.mark.parametrize("algorithm", [fedbuff(buffer=2), fedbuff(buffer=3, learning_rate=0.5), fedasync()])
def test_loop_and_stacked_agree_whatever_version_a_client_has(algorithm: Algorithm) -> None:
    data = uneven([3, 8, 5, 2], seed=2)
    looped, bytes_looped = run(data, algorithm, 8, durations=[1, 2, 5, 3])
    stacked, bytes_stacked = run(data, algorithm, 8, durations=[1, 2, 5, 3], backend=StackedBackend)
    assert_equal(stacked.params, looped.params, close=True)
    assert bytes_looped == bytes_stacked
    assert looped.versions.keys() == stacked.versions.keys()
    fresh, _ = run(data, algorithm, 8, durations=[1, 1, 1, 1])
    assert not torch.allclose(fresh.params["heads.weight"], looped.params["heads.weight"])


@pytest.mark.slow
def test_a_compiled_step_agrees() -> None:
    data, algorithm = uneven([3, 8, 5, 2], seed=2), fedbuff(buffer=3)
    looped, _ = run(data, algorithm, 6, durations=[1, 2, 5, 3])
    compiled, _ = run(
        data, algorithm, 6, durations=[1, 2, 5, 3], backend=lambda training: StackedBackend(training, compiled=True)
    )
    assert_equal(compiled.params, looped.params, close=True)


def test_two_ranks_add_up_to_one() -> None:
    """Each rank trains its part of the arrivals, those that train twice in a round among them."""
    data = uneven([3, 8, 5, 2], seed=2)
    algorithm = fedbuff(buffer=3)
    draws = algorithm.server.draws(sampling_of([1, 2, 5, 3]))
    fed = make_fed(data, make_model(data), algorithm=algorithm, sampling=draws)
    state = initial_state(fed)
    for round in range(6):
        after, _ = run_round(fed, state, round)
        orders = fed.orders(state, fed.population.draw(data, round))
        update = fed.server.collect(orders)
        for number in range(2):
            ranks = Ranks()
            ranks.number, ranks.count = number, 2
            for block, places in fed.train(orders, state.bank, ranks):
                update.add(block, places)
        assert_equal(fed.server.finish(state.server, orders, update, [])["params"], after.params, close=True)
        state = after
    assert len(fed.population.draw(data, 0).waves()) == 2


def test_bytes_are_those_of_departures_and_arrivals() -> None:
    data = uneven([3, 8, 5, 2], seed=2)
    algorithm = fedbuff(buffer=2)
    draws = algorithm.server.draws(sampling_of([1, 2, 5, 3]))
    assert isinstance(draws, Arrivals)
    _, sent = run(data, algorithm, 6, durations=[1, 2, 5, 3])
    each = client_bytes(make_model(data).params(), data.assignment)
    every = outcomes(draws, 6)
    assert sent[0::2] == [int(each[outcome.cohort].sum()) for outcome in every]
    assert sent[1::2] == [int(each[outcome.returned].sum()) for outcome in every]


def test_a_client_that_trains_twice_in_a_round_sees_other_batches() -> None:
    data = uneven([9, 9], seed=1)
    draws = fedbuff(buffer=2).server.draws(sampling_of([1, 9]))
    fed = make_fed(data, make_model(data), algorithm=fedbuff(buffer=2), sampling=draws)
    state = initial_state(fed)
    orders = fed.orders(state, fed.population.draw(data, 0))
    (first, place), (second, after) = fed.train(orders, state.bank, Ranks())
    assert (first.clients, second.clients, place.tolist(), after.tolist()) == ([0], [0], [0], [1])
    assert not torch.equal(first.update["heads.weight"], second.update["heads.weight"])


def test_a_resumed_run_goes_on_with_the_versions_in_flight_bit_for_bit() -> None:
    data = uneven([3, 8, 5, 2], seed=2)

    def learner(algorithm: Algorithm) -> FederatedLearning:
        draws = algorithm.server.draws(sampling_of([1, 2, 5, 3]))
        model = make_model(data)
        fed = make_fed(data, model, algorithm=algorithm, sampling=draws)
        return FederatedLearning(model, fed, Inference(model, OBJECTIVE), initial_state(fed).bank)

    def advance(module: FederatedLearning, first: int, last: int) -> None:
        for round in range(first, last):
            state, _ = run_round(module.federation, module._state(), round)
            module.model.load_state_dict(state.params)
            module.server_state = {slot: values for slot, values in state.server.items() if slot != "params"}
            module.versions = state.versions

    for algorithm in (fedbuff(buffer=2), fedasync()):
        whole, part, resumed = learner(algorithm), learner(algorithm), learner(algorithm)
        advance(whole, 0, 9)
        advance(part, 0, 4)
        saved: dict[str, object] = {}
        part.on_save_checkpoint(saved)
        assert set(saved["versions"]) == part.versions.keys() != set()  # type: ignore[call-overload]
        resumed.on_load_checkpoint(saved)
        resumed.model.load_state_dict(part.model.state_dict())
        advance(resumed, 4, 9)
        assert_equal(resumed.model.params(), whole.model.params())
        assert len(whole.versions) <= 4


def test_weights_of_the_server_count_within_a_buffer() -> None:
    # Both arrive at 1 with one and three images: (1 (0 + 1/2) + 3 (0 + 1)) / 4, or the plain mean of 1/2 and 1.
    two = {"b": ((1.0,), (2.0,)), "h": ((1.0,),) * 2, "images": (1, 3), **HALF}
    draws = fedbuff(buffer=2).server.draws(sampling_of([1, 1]))
    assert path(quadratic(fedbuff(buffer=2), sampling=draws, **two), 1) == [0.875]  # type: ignore[arg-type]
    assert path(quadratic(fedbuff(buffer=2), sampling=draws, server=mean("clients"), **two), 1) == [0.75]  # type: ignore[arg-type]


def test_a_head_is_averaged_over_the_arrivals_that_trained_it() -> None:
    tasks = torch.tensor([[True, False], [True, True]])
    two = {"b": ((1.0, 9.0), (3.0, 5.0)), "h": ((1.0, 1.0),) * 2, "assignment": tasks, "heads": True, **HALF}
    draws = fedbuff(buffer=2).server.draws(sampling_of([1, 1]))
    states, _ = rounds(quadratic(fedbuff(buffer=2), sampling=draws, **two), 1)  # type: ignore[arg-type]
    buffered, expected = states[0].params["heads.x"], rounds(quadratic(fedavg(), **two), 1)[0][0].params["heads.x"]  # type: ignore[arg-type]
    assert torch.equal(buffered, expected)
    mixed = fedasync().server.draws(sampling_of([1, 3]))
    states, _ = rounds(quadratic(fedasync(), sampling=mixed, **two), 1)  # type: ignore[arg-type]
    assert states[0].params["heads.x"][1] == 0  # the first client does not train it


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedBuff(buffer=0), "algorithm.buffer must be >= 1, got 0"),
        (lambda: FedBuff(concurrency=0), "algorithm.concurrency must be >= 1, got 0"),
        (lambda: FedBuff(staleness=-0.1), "algorithm.staleness must be >= 0, got -0.1"),
        (lambda: FedBuff(learning_rate=-1.0), "algorithm.learning_rate must be > 0, got -1.0"),
        (lambda: FedBuff(concurrency=3, buffer=4), r"algorithm.buffer must be in \[1, 3\].*algorithm.concurrency.*got 4"),
        (lambda: FedAsync(learning_rate=1.5), r"algorithm.alpha must be in \(0, 1\], got 1.5"),
        (
            lambda: fedbuff().server.draws(sampling_of([1, 1])),
            r"algorithm.buffer must be in \[1, 2\], the number of clients in fl",
        ),
        (lambda: fedasync(3).server.draws(sampling_of([1, 1])), r"algorithm.concurrency must be in \[1, 2\], the number of clie"),
        (lambda: fedasync().server.draws(Sampling()), "asynchronous rounds need a fleet"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
