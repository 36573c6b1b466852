"""What the papers prove of their methods, on Gramians of forty and of two tasks."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mtl.balancing.aligned_mtl import AlignedMTL
from mtl.balancing.cagrad import CAGrad
from mtl.balancing.conflict_free import ConFIG
from mtl.balancing.contract import Balancer
from mtl.balancing.db_mtl import DBMTL
from mtl.balancing.dualproj import DualProj
from mtl.balancing.fairgrad import FairGrad
from mtl.balancing.gradvac import GradVac
from mtl.balancing.imtl_g import IMTLG
from mtl.balancing.log_losses import GLS, SI
from mtl.balancing.mgda import MGDA
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.stch import LogSTCH
from mtl.balancing.upgrad import UPGrad
from tests.balancing.problems import make_problem, name, run

UNCLIPPED = NashMTL(max_norm=0.0)


def make_gradients(num_tasks: int, num_coordinates: int, *, batch: int = 8, seed: int = 0) -> Tensor:
    """Float64 [batch, T, P], lengths from .1 to 10."""
    rng = torch.Generator().manual_seed(seed)
    length = torch.logspace(-1, 1, num_tasks, dtype=torch.float64)[:, None]
    return torch.randn(batch, num_tasks, num_coordinates, generator=rng, dtype=torch.float64) * length


def weights_of(balancer: Balancer, gradients: Tensor, losses: Tensor | None = None) -> Tensor:
    """The first weights, [..., T]."""
    shape = gradients.shape[:-1]
    losses = torch.ones(shape, dtype=gradients.dtype) if losses is None else losses
    rng = torch.Generator().manual_seed(0)
    draw = torch.rand(*shape[:-1], *balancer.draw_shape(shape[-1], 0), generator=rng, dtype=torch.float64)
    weights, _ = balancer.weigh(
        balancer.init(losses), losses, gradients @ gradients.mT, torch.ones(shape, dtype=torch.bool), draw
    )
    return weights


def gains(weights: Tensor, gradients: Tensor) -> Tensor:
    """g_i . d for every task, [..., T], in lengths of g_i and d."""
    direction = (weights[..., None, :] @ gradients).mT
    length = direction.norm(dim=-2, keepdim=True) * gradients.norm(dim=-1, keepdim=True)
    return (gradients @ direction / length).squeeze(-1)


@pytest.mark.parametrize(("num_tasks", "num_coordinates"), [(40, 60), (40, 2000), (2, 3)])
def test_nash_weights_bargain(num_tasks: int, num_coordinates: int) -> None:
    gradients = make_gradients(num_tasks, num_coordinates)
    weights = weights_of(UNCLIPPED, gradients)
    product = weights * (gradients @ gradients.mT @ weights[..., None]).squeeze(-1)
    torch.testing.assert_close(product, torch.ones_like(product), rtol=0, atol=1e-9)
    length = (weights[..., None, :] @ gradients).norm(dim=-1)
    torch.testing.assert_close(length, torch.full_like(length, math.sqrt(num_tasks)), rtol=1e-9, atol=0)
    clipped = weights_of(NashMTL(), gradients)
    torch.testing.assert_close(clipped, weights / math.sqrt(num_tasks), rtol=1e-9, atol=0)
    torch.testing.assert_close(weights_of(FairGrad(alpha=1.0), gradients), weights, rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0, 5.0])
def test_fairgrad_weights_are_the_gains_to_the_power_minus_alpha(alpha: float) -> None:
    gradients = make_gradients(40, 60)
    weights = weights_of(FairGrad(alpha=alpha), gradients)
    ratio = (gradients @ gradients.mT @ weights[..., None]).squeeze(-1) * weights ** (1 / alpha)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-8)


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    first, second = make_gradients(40, 60, seed=1), make_gradients(40, 60, seed=2)
    active = torch.ones(first.shape[:-1], dtype=torch.bool)
    losses = torch.ones(first.shape[:-1], dtype=torch.float64)
    for balancer in (NashMTL(), FairGrad(alpha=2.0)):
        _, state = balancer.weigh(balancer.init(losses), losses, first @ first.mT, active, losses)
        warm, _ = balancer.weigh(state, losses, second @ second.mT, active, losses)
        torch.testing.assert_close(warm, weights_of(balancer, second), rtol=1e-9, atol=0)


def test_two_tasks_bargain_for_the_sum_of_their_unit_gradients() -> None:
    gradients = make_gradients(2, 5)
    units = gradients / gradients.norm(dim=-1, keepdim=True)
    agreed = (weights_of(UNCLIPPED, gradients)[..., None, :] @ gradients).squeeze(-2)
    cosine = torch.cosine_similarity(agreed, units.sum(-2), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)


def test_two_tasks_get_the_same_from_pcgrad_and_upgrad() -> None:
    gradients = make_gradients(2, 5)
    torch.testing.assert_close(weights_of(PCGrad(), gradients), 2 * weights_of(UPGrad(), gradients), rtol=1e-9, atol=0)


def test_gradvac_starts_as_pcgrad_and_then_aims_higher() -> None:
    gradients = make_gradients(6, 5)
    torch.testing.assert_close(weights_of(GradVac(), gradients), weights_of(PCGrad(), gradients), rtol=1e-9, atol=1e-12)
    pair = make_gradients(2, 5)
    target = torch.full((8, 2, 2), 0.6, dtype=torch.float64)
    everyone = torch.ones(8, 2, dtype=torch.bool)
    draw = torch.rand(8, 2, 2)
    losses = torch.ones(8, 2, dtype=torch.float64)
    weights, state = GradVac(beta=0.25).weigh({"targets": target}, losses, pair @ pair.mT, everyone, draw)
    cosine = torch.cosine_similarity(pair[:, 0], pair[:, 1], dim=-1)
    assert (cosine < 0.6).any()
    # Both gradients are turned until the cosine with the other, unturned one is the target.
    for i, j in ((0, 1), (1, 0)):
        added = weights[:, j : j + 1] - 1
        turned = torch.cosine_similarity(pair[:, i] + added * pair[:, j], pair[:, j], dim=-1)
        torch.testing.assert_close(turned, cosine.clamp_min(0.6), rtol=0, atol=1e-9)
        torch.testing.assert_close(state["targets"][:, i, j], 0.45 + 0.25 * cosine, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "balancer",
    [UPGrad(), DualProj(), MGDA(), CAGrad(c=1.0), CAGrad(c=2.0), NashMTL(), FairGrad(alpha=0.5), FairGrad(alpha=3.0), ConFIG()],
    ids=name,
)
@pytest.mark.parametrize(("num_tasks", "num_coordinates"), [(40, 45), (40, 500), (2, 2)])
def test_no_task_gets_worse(balancer: Balancer, num_tasks: int, num_coordinates: int) -> None:
    gradients = make_gradients(num_tasks, num_coordinates)
    assert (gains(weights_of(balancer, gradients), gradients) >= -1e-8).all()


def test_nothing_moves_far_where_every_update_makes_a_task_worse() -> None:
    # The hull of three gradients in the plane holds the origin: the point is Pareto-stationary.
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [-1.0, -3.0]], dtype=torch.float64)
    for balancer in (MGDA(), UPGrad(), DualProj(), CAGrad(c=1.0), CAGrad(c=1.5)):
        assert (weights_of(balancer, gradients) @ gradients).norm() < 1e-6


def test_upgrad_and_dualproj_keep_what_does_not_conflict() -> None:
    gradients = make_gradients(5, 9).abs()
    for balancer in (UPGrad(), DualProj()):
        torch.testing.assert_close(weights_of(balancer, gradients), torch.full((8, 5), 0.2, dtype=torch.float64))


def test_mgda_is_the_shortest_vector_in_the_hull() -> None:
    gradients = make_gradients(40, 60)
    weights = weights_of(MGDA(), gradients)
    direction = (weights[..., None, :] @ gradients).mT
    along = (gradients @ direction).squeeze(-1)
    square = (direction**2).sum((-2, -1))[..., None]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(8, dtype=torch.float64))
    # Every gradient reaches at least as far along it, those with weight exactly as far.
    assert (along >= square * (1 - 1e-9)).all()
    torch.testing.assert_close(along[weights > 0], square.expand_as(along)[weights > 0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 1.5])
def test_cagrad_helps_the_worst_off_most_within_the_ball(c: float) -> None:
    gradients = make_gradients(40, 60)
    mean = gradients.mean(-2)
    weights = weights_of(CAGrad(c=c), gradients)
    direction = (weights[..., None, :] @ gradients).squeeze(-2)
    radius = c * mean.norm(dim=-1)
    torch.testing.assert_close((direction - mean).norm(dim=-1), radius, rtol=1e-8, atol=0)
    added = weights - 1 / 40
    assert (added >= -1e-12).all()
    # Duality: the worst task's gain equals the bound that the weights give.
    worst = (gradients @ direction[..., None]).squeeze(-1).amin(-1)
    share = added / added.sum(-1, keepdim=True)
    combined = (share[..., None, :] @ gradients).squeeze(-2)
    bound = (combined * mean).sum(-1) + radius * combined.norm(dim=-1)
    torch.testing.assert_close(worst, bound, rtol=1e-8, atol=1e-10)


def test_imtl_g_has_the_same_projection_on_every_gradient() -> None:
    gradients = make_gradients(10, 30)
    weights = weights_of(IMTLG(), gradients)
    torch.testing.assert_close(weights.sum(-1), torch.ones(8, dtype=torch.float64))
    projection = gains(weights, gradients)
    torch.testing.assert_close(projection, projection[..., :1].expand_as(projection), rtol=1e-9, atol=0)


def test_config_has_the_same_cosine_to_every_gradient_and_their_summed_length_along_it() -> None:
    gradients = make_gradients(10, 30)
    weights = weights_of(ConFIG(), gradients)
    cosine = gains(weights, gradients)
    torch.testing.assert_close(cosine, cosine[..., :1].expand_as(cosine), rtol=1e-9, atol=0)
    length = (weights[..., None, :] @ gradients).norm(dim=(-2, -1))
    torch.testing.assert_close(length, (cosine * gradients.norm(dim=-1)).sum(-1), rtol=1e-9, atol=0)


SCALES: list[tuple[Balancer, float]] = [
    *(
        (balancer, 0.0)
        for balancer in (MGDA(), PCGrad(), GradVac(), CAGrad(), IMTLG(), AlignedMTL(), UPGrad(), DualProj(), ConFIG())
    ),
    (NashMTL(), -1.0),
    (FairGrad(alpha=0.5), -2 / 3),
    (FairGrad(alpha=2.0), -4 / 3),
]


@pytest.mark.parametrize("factor", [1e-3, 1e4])
@pytest.mark.parametrize(("balancer", "power"), SCALES)
def test_weights_follow_a_power_of_the_gradients_scale(balancer: Balancer, power: float, factor: float) -> None:
    gradients = make_gradients(5, 7)
    expected = weights_of(balancer, gradients) * factor**power
    torch.testing.assert_close(weights_of(balancer, gradients * factor), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("balancer", [NashMTL(), ConFIG(), DBMTL()], ids=name)
def test_a_task_in_another_unit_leaves_the_direction_as_it_was(balancer: Balancer) -> None:
    gradients = make_gradients(5, 7)
    unit = torch.tensor([1e-3, 1.0, 50.0, 0.2, 7.0], dtype=torch.float64)
    losses = torch.rand(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    before = weights_of(balancer, gradients, losses)[..., None, :] @ gradients
    scaled = gradients * unit[:, None]
    after = weights_of(balancer, scaled, losses * unit)[..., None, :] @ scaled
    cosine = torch.cosine_similarity(before, after, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9)


@pytest.mark.parametrize("balancer", [GLS(), SI(), LogSTCH(warmup=2, nadir_steps=1)], ids=name)
def test_a_loss_in_another_unit_leaves_the_direction_as_it_was(balancer: Balancer) -> None:
    problem = make_problem(seed=1)
    unit = torch.tensor([1e-2, 1.0, 50.0, 0.2, 7.0], dtype=torch.float64)
    scaled = replace(
        problem, losses=problem.losses * unit, after=problem.after * unit, gradients=problem.gradients * unit[:, None]
    )
    before, _ = run(balancer, problem)
    after, _ = run(balancer, scaled)
    cosine = torch.cosine_similarity(before, after, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9)
