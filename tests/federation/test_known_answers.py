"""Known answers of federated algorithms on problem Q: two quadratic clients, full gradients, rate .1, five steps, from zero.

f1 = (x - 1)^2 / 2 and f2 = 4 (x + 1)^2 / 2: the optimum is -.6, with gradients of -1.6 and 1.6 there. The numbers come from the equations,
iterated in float64 by a script of a few lines that shares no code with this package.
"""

from dataclasses import replace

import pytest
import torch

from mtl.data.client_batches import LocalWork
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.feddyn import DUAL, feddyn
from mtl.federation.algorithms.fednova import fednova
from mtl.federation.algorithms.fedprox import fedprox
from mtl.federation.algorithms.scaffold import CLIENT_CONTROL, scaffold
from mtl.federation.server import mean
from tests.federation.quadratics import SGD, kept, limit, path, quadratic, rounds, step_by_step

MOMENTUM = replace(SGD, momentum=0.9)
ONE, UNEVEN = LocalWork(batch_size=64, steps=1), LocalWork(batch_size=1, epochs=1)  # an epoch of one image a step
TWO_AND_TEN = {"images": (2, 10), "work": UNEVEN, "server": mean("clients")}
QUARTERS = {"images": (1, 3)}


@pytest.mark.parametrize(
    ("algorithm", "options", "first", "end"),
    [
        (fedavg(), {"work": ONE}, [], -0.6),
        (fedavg(), {"work": LocalWork(64, steps=2)}, [], -0.542169),
        (fedavg(), {}, [-0.256365, -0.342023], -0.385005),
        (fedavg(), {"work": LocalWork(64, steps=10)}, [], -0.208252),
        (fedavg(), TWO_AND_TEN, [], -0.679041),
        (fedavg(), {"client": MOMENTUM}, [-0.349920], -0.253734),
        (fedavg(), QUARTERS, [], -0.742141),
        (fedavg(momentum=0.9), {}, [-0.256365, -0.572751, -0.732483], None),
        (fedprox(mu=1.0), {}, [-0.219420], -0.394939),
        (scaffold("II"), {}, [-0.256365, -0.461181, -0.560743], -0.6),
        (scaffold("I"), {}, [-0.256365, -0.565710, -0.634663], -0.6),
        (scaffold("II"), {"client": MOMENTUM}, [], -0.6),
        (scaffold("II"), TWO_AND_TEN, [], -0.6),
        (scaffold("II"), QUARTERS, [-0.589303, -0.800034, -0.847326], -0.846154),
        (fednova(), TWO_AND_TEN, [-0.013186], -0.022610),
        (fednova(), {**TWO_AND_TEN, "client": MOMENTUM}, [0.939555], None),
        (fednova(mu=1.0), TWO_AND_TEN, [-0.083911], None),
        (feddyn(alpha=1.0), {}, [-0.438840, -0.572326, -0.583958], -0.6),
        (feddyn(alpha=0.01), {}, [-0.511888, -0.598829, -0.487189], None),
    ],
)
def test_paths_and_limits_on_problem_q(
    algorithm: Algorithm, options: dict[str, object], first: list[float], end: float | None
) -> None:
    fed = quadratic(algorithm, **options)  # type: ignore[arg-type]
    assert path(fed, len(first)) == pytest.approx(first, abs=1e-6)
    if end is not None:
        stateless = not algorithm.client.keeps
        assert (limit(fed) if stateless else path(fed, 60)[-1]) == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize(("mu", "end"), [(0.1, -0.035294), (1.0, -3 / 13), (10.0, -0.517241)])
def test_fedprox_solved_exactly_ends_at_the_minimum_of_the_summed_moreau_envelopes(mu: float, end: float) -> None:
    fed = quadratic(fedprox(mu), client=replace(SGD, learning_rate=0.05), work=LocalWork(64, steps=300))
    assert limit(fed) == pytest.approx(end, abs=1e-6)


def test_the_variates_of_scaffold_are_those_of_the_paper_and_end_at_the_gradients() -> None:
    fed = quadratic(scaffold("II"))
    first = next(step_by_step(fed, 1))
    states, _ = rounds(fed, 40)
    assert kept(fed, first, CLIENT_CONTROL).flatten().tolist() == pytest.approx([-0.819020, 1.844480], abs=1e-6)
    assert kept(fed, states[-1], CLIENT_CONTROL).flatten().tolist() == pytest.approx([-1.6, 1.6], abs=1e-6)
    # The round's map turns and shrinks: d_{n+2} = p d_{n+1} + q d_n with complex roots, whose length is the root of -q.
    d = torch.tensor([float(state.params["trunk.x"]) + 0.6 for state in states], dtype=torch.float64)
    _, q = torch.linalg.solve(torch.stack([d[1:3].flip(0), d[2:4].flip(0)]), d[3:5]).tolist()
    assert (-q) ** 0.5 == pytest.approx(0.407600, abs=1e-6)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, [-0.3, -0.45, -0.525]), (10.0, [-0.194805])])
def test_feddyn_solved_exactly(alpha: float, expected: list[float]) -> None:
    fed = quadratic(feddyn(alpha), work=LocalWork(64, steps=200))
    assert path(fed, len(expected)) == pytest.approx(expected, abs=1e-6)


def test_the_duals_of_feddyn_end_at_the_gradients() -> None:
    fed = quadratic(feddyn(alpha=1.0))
    states, _ = rounds(fed, 60)
    assert kept(fed, states[-1], DUAL).flatten().tolist() == pytest.approx([-1.6, 1.6], abs=1e-6)


def test_fednova_is_exact_only_for_small_steps() -> None:
    small = {"client": replace(SGD, learning_rate=0.001), **TWO_AND_TEN}
    assert limit(quadratic(fednova(), **small)) == pytest.approx(-0.594380, abs=1e-6)  # type: ignore[arg-type]
    assert limit(quadratic(fedavg(), **small)) == pytest.approx(-0.903165, abs=1e-6)  # type: ignore[arg-type]


def test_a_step_count_with_momentum_is_that_of_the_formula() -> None:
    from mtl.federation.algorithms.contract import ClientAlgorithm
    from mtl.federation.algorithms.reach import reach

    found = reach(MOMENTUM, ClientAlgorithm(), ["trunk.x"], steps=[0, 2, 5, 10], learning_rate=0.1)["trunk.x"] / 0.1
    assert found.tolist() == pytest.approx([0, 2.9, 13.1441, 41.381060], abs=1e-6)
    assert found.dtype == torch.float64
