"""Whom a round waits for, what it takes, and who cannot take part."""

import csv
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.client_batches import LocalWork
from mtl.devices.fleet import Fleet
from mtl.devices.ledger import Workload
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.layout import Layout
from mtl.federation.message import client_bytes
from mtl.federation.population.fleet import FleetSampling
from mtl.federation.population.sampling import Outcome, Sampling
from mtl.federation.workload import client_workload, training_cost
from tests.conftest import make_federation
from tests.federation.test_backends import uneven
from tests.federation.test_rounds import OBJECTIVE, assert_equal, make_model, run

# One FLOP a second, one byte a second, and nothing else takes time: the numbers below are seconds.
UNIT = {
    "peak_flop_per_second": 1,
    "efficiency": 1,
    "down_bit_per_second": 8,
    "up_bit_per_second": 8,
    "latency_seconds": 0,
    "compute_watts": 10,
    "radio_watts": 1,
    "idle_watts": 2,
    "memory_bytes": 100,
}
PROFILES = {"unit": UNIT, "small": UNIT | {"memory_bytes": 10}}


def sampling_of(
    flops: list[float],
    sampling: Sampling | None = None,
    *,
    memory: list[float] | None = None,
    mix: dict[str, float] | None = None,
    seed: int = 0,
    link: float = 0.0,
    **options: object,
) -> FleetSampling:
    """Clients that take `flops` seconds to train and `link` each way."""
    work, sent = torch.tensor(flops, dtype=torch.float64), torch.full((len(flops),), link, dtype=torch.float64)
    needed = torch.zeros_like(work) if memory is None else torch.tensor(memory, dtype=torch.float64)
    fleet = Fleet(mix or {"unit": 1}, PROFILES, **options)  # type: ignore[arg-type]
    assignment = torch.eye(len(flops), dtype=torch.bool)
    return FleetSampling(sampling or Sampling(), fleet, Workload(work, sent, sent, needed), assignment, seed=seed)


def outcome_of(fleet: FleetSampling, round: int) -> Outcome:
    return fleet.outcome(len(fleet.workload), seed=fleet.seed, round=round)


def test_a_round_lasts_until_the_slowest_is_back() -> None:
    outcome = outcome_of(sampling_of([3, 5, 1], link=1), 0)
    assert (outcome.cohort, outcome.returned, outcome.seconds) == ([0, 1, 2], [0, 1, 2], 7)
    # 2 W of idle throughout, 8 W more at work, 1 W more on the link
    assert outcome.joules.tolist() == [2 * (n + 2) + 8 * n + 2 for n in (3, 5, 1)]


def test_whoever_misses_the_deadline_is_left_out_and_stops_there() -> None:
    outcome = outcome_of(sampling_of([3, 5, 1, 9], link=1, deadline=6.0), 0)
    assert (outcome.cohort, outcome.returned, outcome.seconds) == ([0, 1, 2, 3], [0, 2], 6)
    # The second has worked all of its five seconds and received one; the fourth is stopped at work.
    assert outcome.joules.tolist() == [2 * 5 + 24 + 2, 2 * 6 + 40 + 1, 2 * 3 + 8 + 2, 2 * 6 + 40 + 1]
    assert outcome_of(sampling_of([3, 5], deadline=5.0), 0).returned == [0, 1]  # in time to the moment


def test_a_round_ends_when_as_many_as_are_waited_for_are_back() -> None:
    outcome = outcome_of(sampling_of([3, 5, 1, 9], wait_for=2), 0)
    assert (outcome.cohort, outcome.returned, outcome.seconds) == ([0, 1, 2, 3], [0, 2], 3)
    assert outcome.joules.tolist() == [30, 30, 10, 30]
    both = outcome_of(sampling_of([3, 5, 1, 9], wait_for=3, deadline=4.0), 0)
    assert (both.returned, both.seconds) == ([0, 2], 4)


def test_a_client_that_drops_out_is_waited_for_until_its_connection_breaks() -> None:
    sampling = Sampling(dropout=0.5)
    rounds = [outcome_of(sampling_of([3, 5, 1, 9], sampling, link=1), r) for r in range(20)]
    for r, outcome in enumerate(rounds):
        cohort, stay = sampling.draw(4, seed=0, round=r)
        assert (outcome.cohort, outcome.returned) == (cohort, stay)
        ends = [(3, 5, 1, 9)[client] + (2 if client in stay else 1) for client in cohort]
        assert outcome.seconds == max(ends)
        assert outcome.joules[3].item() == 2 * ends[3] + 72 + (2 if 3 in stay else 1)
    assert len({len(outcome.returned) for outcome in rounds}) > 2
    # Those that are waited for are the first of those that do not drop out.
    for r in range(20):
        _, stay = sampling.draw(4, seed=0, round=r)
        quick = sorted(stay, key=lambda client: (3, 5, 1, 9)[client])[:2]
        assert outcome_of(sampling_of([3, 5, 1, 9], sampling, wait_for=2), r).returned == sorted(quick)


def test_a_cohort_of_which_nobody_comes_back_ends_with_the_last_connection_or_the_deadline() -> None:
    sampling = Sampling(dropout=0.9)
    empty = next(r for r in range(99) if not sampling.draw(3, seed=0, round=r)[1])
    assert outcome_of(sampling_of([3, 5, 1], sampling), empty).seconds == 5
    assert outcome_of(sampling_of([3, 5, 1], sampling, deadline=4.0), empty).seconds == 4


def test_of_clients_back_at_the_same_moment_chance_decides() -> None:
    fleet = sampling_of([1] * 6, wait_for=3)
    chosen = [tuple(outcome_of(fleet, r).returned) for r in range(60)]
    counts = torch.bincount(torch.tensor(chosen).flatten(), minlength=6)
    assert (counts > 15).all()  # thirty each on average
    assert chosen == [tuple(outcome_of(fleet, r).returned) for r in range(60)]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(1, 6),
    st.sampled_from([None, 2.0, 4.0]),
    st.sampled_from([0.0, 0.4]),
    st.integers(0, 50),
)
@settings(max_examples=150, deadline=None)
def test_laws_of_a_round(flops: list[int], wait_for: int, deadline: float | None, dropout: float, round: int) -> None:
    sampling = Sampling(dropout=dropout)
    wait_for = min(wait_for, len(flops))
    deadline = None if deadline is None else max(deadline, min(flops))
    outcome = outcome_of(sampling_of(list(flops), sampling, wait_for=wait_for, deadline=deadline), round)
    cohort, stay = sampling.draw(len(flops), seed=0, round=round)
    assert outcome.cohort == cohort
    assert set(outcome.returned) <= set(stay)
    assert outcome.returned == sorted(outcome.returned)
    assert len(outcome.returned) <= wait_for
    assert outcome.seconds <= min(max(flops), deadline or 99)
    assert all(flops[client] <= outcome.seconds for client in outcome.returned)
    # Nobody who could have come back sooner was passed over.
    left = [flops[client] for client in stay if client not in outcome.returned]
    if outcome.returned and left:
        assert min(left) >= max(flops[client] for client in outcome.returned)
    assert all(0 <= joules <= 10 * outcome.seconds + 1e-9 for joules in outcome.joules.tolist())


def test_a_client_that_does_not_hold_the_step_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError,
        match=r"client 2 on small needs 1,000 bytes for a training step and has 10; "
        r"1 of 3 clients have too little memory; fleet.memory=skip",
    ):
        sampling_of([1] * 3, memory=[10, 10, 1000], mix={"small": 1})
    with pytest.raises(ValueError, match=r"3 of 3 clients have too little memory$"):
        sampling_of([1] * 3, memory=[11, 12, 13], mix={"small": 1})


def test_a_client_that_does_not_hold_the_step_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def skipping(sampling: Sampling, **options: object) -> FleetSampling:
        needed = torch.tensor([0.0, 1000.0, 0.0, 1000.0], dtype=torch.float64)
        each = torch.ones(4, dtype=torch.float64)
        fleet = Fleet({"unit": 1}, PROFILES, memory="skip", **options)  # type: ignore[arg-type]
        return FleetSampling(sampling, fleet, Workload(each, each, each, needed), torch.eye(4, dtype=torch.bool), seed=0)

    with caplog.at_level("WARNING"):
        fleet = skipping(Sampling())
    assert (
        "2 of 4 clients have too little memory for a training step and are never drawn; no other client trains 2 of 4 subtasks"
        in caplog.text
    )
    assert outcome_of(fleet, 0).returned == [0, 2]
    drawn = {tuple(outcome_of(skipping(Sampling(cohort=1)), r).cohort) for r in range(20)}
    assert drawn == {(0,), (2,)}
    with pytest.raises(
        ValueError, match=r"sampling.cohort must be in \[1, 2\], the number of clients of 4 that can take part, got 3"
    ):
        skipping(Sampling(cohort=3))


def test_a_deadline_that_nobody_meets_is_refused_and_one_that_some_never_meet_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"fleet.deadline must be at least 3 s, the time of the fastest client, got 2.5"):
        sampling_of([3, 5], deadline=2.5)
    with caplog.at_level("WARNING"):
        sampling_of([3, 5], deadline=4.0)
    assert "1 of 2 clients are too slow for fleet.deadline=4 in any round" in caplog.text


def test_more_than_a_cohort_cannot_be_waited_for() -> None:
    with pytest.raises(ValueError, match=r"fleet.wait_for must be in \[1, 2\], the size of a cohort, got 3"):
        sampling_of([1] * 4, Sampling(cohort=2), wait_for=3)


def test_a_patient_server_draws_as_without_a_fleet() -> None:
    for sampling in (Sampling(), Sampling(cohort=3, dropout=0.3)):
        fleet = sampling_of([1, 2, 3, 4, 5], sampling)
        for r in range(10):
            outcome = outcome_of(fleet, r)
            assert (outcome.cohort, outcome.returned) == sampling.draw(5, seed=0, round=r)


def test_the_workload_of_a_client_is_by_hand() -> None:
    data = uneven([3, 8], seed=1)
    model, work = make_model(data), LocalWork(batch_size=4, epochs=2)
    cost = training_cost(model, OBJECTIVE, LocalSGD(), work, data)
    workload = client_workload(cost, model.params(), layout=Layout(), work=work, data=data)
    # Linear regression of 64 pixels on 4 subtasks: forward and to the weights, two FLOPs a product, two passes over the images.
    assert workload.flops.tolist() == [2 * 2 * 64 * 4 * 2 * images for images in (3, 8)]
    assert workload.bytes_up.tolist() == [4 * 65 * tasks for tasks in data.assignment.sum(1).tolist()]
    assert torch.equal(workload.bytes_up, client_bytes(model.params(), data.assignment).double())
    assert client_workload(cost, model.params(), layout=Layout("all"), work=work, data=data).bytes_down.tolist() == [0, 0]


def test_loop_and_stacked_agree_with_a_fleet_and_the_late_leave_no_trace() -> None:
    data = uneven([3, 8, 5, 2], seed=2)
    model, work = make_model(data), LocalWork(batch_size=4, epochs=1)
    cost = training_cost(model, OBJECTIVE, LocalSGD(), work, data)
    workload = client_workload(cost, model.params(), layout=Layout(), work=work, data=data)
    fleet = Fleet({"unit": 1}, {"unit": UNIT | {"memory_bytes": 1e9}}, wait_for=2)
    sampling = FleetSampling(Sampling(), fleet, workload, data.assignment, seed=0)

    class Those(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:  # type: ignore[override]
            return [0, 3], [0, 3]

    looped, logs = run(data, model, 3, sampling=sampling, work=work, backend=LoopBackend)
    stacked, _ = run(data, model, 3, sampling=sampling, work=work, backend=StackedBackend)
    alone, _ = run(data, model, 3, sampling=Those(), work=work)
    assert all(log.cohort.clients == [0, 3] for log in logs)
    assert logs[0].bytes_down == workload.bytes_down.sum()
    assert logs[0].bytes_up == workload.bytes_up[[0, 3]].sum()
    assert_equal(stacked.params, looped.params, close=True)
    assert_equal(looped.params, alone.params)


def test_the_table_of_the_clients_says_what_each_is_and_takes(tmp_path: Path) -> None:
    fleet = sampling_of([3, 5], link=1, memory=[7, 8])
    fleet.write(tmp_path, [10, 20], [1.0, 0.5])
    with (tmp_path / "fleet.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["client"], first["device"], first["images"], first["drawn"]) == ("0", "unit", "10", "1")
    assert (first["width"], second["width"]) == ("1", "0.5")
    assert float(second["modelled_seconds_compute"]) == 5
    assert float(second["modelled_joules"]) == 2 * 7 + 40 + 2
    assert float(second["modelled_memory_bytes"]) == 8


def test_a_fleet_does_not_disturb_the_federation() -> None:
    data = make_federation()
    model = make_model(data)
    work = LocalWork(batch_size=4)
    cost = training_cost(model, OBJECTIVE, LocalSGD(), work, data)
    workload = client_workload(cost, model.params(), layout=Layout(), work=work, data=data)
    sampling = FleetSampling(Sampling(), Fleet({"rk3588": 1}), workload, data.assignment, seed=0)
    with_fleet, _ = run(data, model, 2, sampling=sampling, work=work)
    without, _ = run(data, model, 2, work=work)
    assert_equal(with_fleet.params, without.params)
