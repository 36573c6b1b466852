"""Balancers at the sizes that users have: float32, 10,000 to 400,000 coordinates, forty tasks; opposed, equal, zero and NaN gradients."""

import math

import pytest
import torch
from torch import Tensor

from mtl.balancing.conflict_free import ConFIG
from mtl.balancing.contract import Balancer
from mtl.balancing.dualproj import DualProj
from mtl.balancing.excess_mtl import ExcessMTL
from mtl.balancing.fairgrad import FairGrad
from mtl.balancing.gramian import gramian_of
from mtl.balancing.imtl_g import IMTLG
from mtl.balancing.mgda import MGDA
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.upgrad import UPGrad
from tests.balancing.problems import FROM_GRAMIAN, name

LENGTHS = [10_000, 100_000, 400_000]
# Their number of tasks is not that of the fields with one value per task.
FOR_ANY_NUMBER = [balancer for balancer in FROM_GRAMIAN if getattr(balancer, "preference", None) is None]


def combine(balancer: Balancer, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """The update and the weights of a first step."""
    number = len(gradients)
    losses, active = torch.ones(number, dtype=gradients.dtype), torch.ones(number, dtype=torch.bool)
    draw = torch.rand(balancer.draw_shape(*gradients.shape), generator=torch.Generator().manual_seed(0))
    direction, weights, _ = balancer.combine(balancer.init(losses), losses, gradients, active, draw)
    return direction, weights


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def opposed(length: int, seed: int) -> Tensor:
    """g and -1.5 g: no update helps both."""
    gradient = random(length, seed=seed)
    return torch.stack([gradient, -1.5 * gradient])


def opposed_by_sum(length: int, seed: int) -> Tensor:
    """g_1, g_2 and -(g_1 + g_2): no update helps all three."""
    two = random(2, length, seed=seed)
    return torch.cat([two, -two.sum(0, keepdim=True)])


@pytest.mark.parametrize("length", LENGTHS)
def test_a_gramian_of_float32_gradients_is_that_in_float64(length: int) -> None:
    gradients = torch.cat([opposed_by_sum(length, 0), random(37, length, seed=1)])
    gramian = gramian_of(gradients)
    torch.testing.assert_close(gramian, gradients.double() @ gradients.double().mT, rtol=1e-12, atol=1e-9)
    assert torch.linalg.eigvalsh(gramian).min() >= -1e-10 * gramian.diagonal().max()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("make", [opposed, opposed_by_sum])
@pytest.mark.parametrize("balancer", FOR_ANY_NUMBER, ids=name)
def test_opposed_gradients_give_a_finite_update(balancer: Balancer, make, length: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(3):
        direction, weights = combine(balancer, make(length, seed))
        assert direction.isfinite().all()
        assert weights.isfinite().all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("make", [opposed, opposed_by_sum])
@pytest.mark.parametrize("balancer", [UPGrad(), DualProj(), MGDA(), ConFIG()], ids=name)
def test_where_no_update_helps_all_there_is_next_to_none(balancer: Balancer, make, length: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        gradients = make(length, seed)
        direction, _ = combine(balancer, gradients)
        assert direction.norm() < 5e-3 * gradients.norm(dim=1).mean()


@pytest.mark.parametrize("make", [opposed, opposed_by_sum])
def test_bargained_updates_keep_their_length(make) -> None:  # type: ignore[no-untyped-def]
    """sum_i a_i (G a)_i = T gives |J^T a| <= sqrt(T), clipped at 1 for Nash-MTL."""
    for seed in range(5):
        gradients = make(100_000, seed)
        assert combine(NashMTL(), gradients)[0].norm() < 1.01
        assert combine(FairGrad(), gradients)[0].norm() < 1.01 * math.sqrt(len(gradients))


def test_forty_tasks_make_no_task_worse() -> None:
    gradients = random(40, 100_000) + 3 * random(1, 100_000, seed=1) * torch.linspace(-1, 1.2, 40)[:, None]
    for balancer in (UPGrad(), DualProj(), MGDA()):
        direction, _ = combine(balancer, gradients)
        progress = (gradients.double() @ direction.double()) / gradients.double().norm(dim=1)
        assert progress.min() > -1e-3 * direction.norm()


@pytest.mark.parametrize("balancer", FOR_ANY_NUMBER, ids=name)
def test_equal_gradients_are_descended(balancer: Balancer) -> None:
    gradients = random(1, 100_000).expand(40, -1)
    direction, _ = combine(balancer, gradients)
    cosine = torch.nn.functional.cosine_similarity(direction, gradients[0], dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize("balancer", FOR_ANY_NUMBER, ids=name)
def test_a_gradient_that_is_not_a_number_shows_in_the_update(balancer: Balancer) -> None:
    """It must reach the health check of the round: neither an exception of a solver nor numbers that look well."""
    gradients = random(5, 1_000)
    gradients[1, 7] = torch.nan
    direction, _ = combine(balancer, gradients)
    assert not direction.isfinite().all()


def test_excess_mtl_follows_the_authors_rule() -> None:
    """At the first step the excess is stored and weights stay 1; then w ~ w exp(step e / e_first), scaled to sum T."""
    balancer = ExcessMTL()
    everyone, draw = torch.ones(40, dtype=torch.bool), torch.zeros(0)
    losses = torch.ones(40)
    scale = torch.logspace(-3, 0, 40)[:, None]
    state = balancer.init(torch.zeros(40, 100_000))
    squares, expected, first = torch.zeros(40, 100_000, dtype=torch.float64), torch.ones(40, dtype=torch.float64), None
    for step in range(4):
        gradients = random(40, 100_000, seed=step) * scale * (1 + step * torch.linspace(0, 1, 40)[:, None])
        direction, weights, state = balancer.combine(state, losses, gradients, everyone, draw)
        wide = gradients.double()
        squares += wide**2
        excess = (wide**2 / (squares + 1e-7).sqrt()).sum(1)
        if first is None:
            first = excess
        else:
            expected = expected * (0.01 * excess / first).exp()
            expected = expected / expected.sum() * 40
        torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(direction, weights @ gradients, rtol=1e-3, atol=1e-4)
    assert 1 / ((expected / 40) ** 2).sum() > 39  # tasks that count: all of them


@pytest.mark.parametrize("make", [opposed, opposed_by_sum])
def test_imtl_g_of_opposed_gradients_stays_in_proportion(make) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        gradients = make(100_000, seed)
        assert combine(IMTLG(), gradients)[0].norm() < 10 * gradients.norm(dim=1).mean()
