"""torchjd as an independent implementation, in float64.

It lacks the logarithmic STCH, SI, GradNorm, DB-MTL and MoCo: see `test_by_hand`.
"""

from collections.abc import Callable

import pytest
import torch
import torchjd.aggregation as jd
import torchjd.scalarization as js
from torch import Tensor
from torchjd.linalg import QuadprogProjector

from mtl.balancing.aligned_mtl import AlignedMTL
from mtl.balancing.cagrad import CAGrad
from mtl.balancing.conflict_free import ConFIG
from mtl.balancing.contract import Balancer
from mtl.balancing.cr_mogm import CRMOGM
from mtl.balancing.dualproj import DualProj
from mtl.balancing.dwa import DWA
from mtl.balancing.fairgrad import FairGrad
from mtl.balancing.famo import FAMO
from mtl.balancing.graddrop import GradDrop
from mtl.balancing.gradvac import GradVac
from mtl.balancing.gramian import gramian_of
from mtl.balancing.imtl_g import IMTLG
from mtl.balancing.log_losses import GLS
from mtl.balancing.mgda import MGDA
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.pcd import PCD
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.stch import STCH
from mtl.balancing.uncertainty import IMTLL, UW
from mtl.balancing.upgrad import UPGrad

NOTHING = torch.zeros(0)


def make_gradients(num_tasks: int, num_coordinates: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    length = torch.logspace(-0.5, 0.5, num_tasks, dtype=torch.float64)[:, None]
    return torch.randn(num_tasks, num_coordinates, generator=rng, dtype=torch.float64) * length


def direction(balancer: Balancer, gradients: Tensor, draw: Tensor = NOTHING) -> Tensor:
    losses = torch.ones(len(gradients), dtype=gradients.dtype)
    everyone = torch.ones(len(gradients), dtype=torch.bool)
    return balancer.combine(balancer.init(losses), losses, gradients, everyone, draw)[0]


# torchjd's own regularisation is turned down where it has one. Its FairGrad and CAGrad stop at their solvers' tolerances, scipy's least
# squares at 1e-8 of the cost and CLARABEL at 1e-8 of the gap, whose square root the weights follow. The others agree to rounding.
PROJECTOR = QuadprogProjector(norm_eps=0.0, reg_eps=1e-13)
AGGREGATORS: list[tuple[Balancer, Callable[[], jd.Aggregator], float]] = [
    (UPGrad(), lambda: jd.UPGrad(projector=PROJECTOR), 1e-6),
    (DualProj(), lambda: jd.DualProj(projector=PROJECTOR), 1e-6),
    (IMTLG(), jd.IMTLG, 1e-9),
    (AlignedMTL(), jd.AlignedMTL, 1e-9),
    (AlignedMTL(scale="median"), lambda: jd.AlignedMTL(scale_mode="median"), 1e-9),
    (AlignedMTL(scale="mean"), lambda: jd.AlignedMTL(scale_mode="rmse"), 1e-9),
    (ConFIG(), jd.ConFIG, 1e-9),
    (CAGrad(c=0.4), lambda: jd.CAGrad(c=0.4, norm_eps=0.0), 1e-3),
    (CAGrad(c=1.5), lambda: jd.CAGrad(c=1.5, norm_eps=0.0), 1e-3),
    (FairGrad(alpha=1.0), lambda: jd.FairGrad(alpha=1.0), 1e-3),
    (FairGrad(alpha=2.0), lambda: jd.FairGrad(alpha=2.0), 1e-3),
]


@pytest.mark.parametrize(("balancer", "reference", "tolerance"), AGGREGATORS)
@pytest.mark.parametrize(("num_tasks", "num_coordinates"), [(2, 3), (5, 7), (12, 40)])
def test_directions_agree(
    balancer: Balancer, reference: Callable[[], jd.Aggregator], tolerance: float, num_tasks: int, num_coordinates: int
) -> None:
    gradients = make_gradients(num_tasks, num_coordinates)
    expected = reference()(gradients)
    error = (direction(balancer, gradients) - expected).norm() / expected.norm()
    assert error < tolerance


@pytest.mark.parametrize(("num_tasks", "num_coordinates"), [(2, 3), (5, 7), (12, 40)])
def test_mgda_is_at_least_as_short_as_by_frank_wolfe(num_tasks: int, num_coordinates: int) -> None:
    gradients = make_gradients(num_tasks, num_coordinates)
    result, expected = direction(MGDA(), gradients), jd.MGDA(epsilon=1e-6, max_iters=3_000)(gradients)
    assert result.norm() <= expected.norm() * (1 + 1e-12)
    # Frank-Wolfe is slow at the end.
    assert (result - expected).norm() < 3e-2 * expected.norm()


# With twelve tasks torchjd's solver gives up, far from |J^T a| = sqrt(T).
@pytest.mark.filterwarnings("ignore:.*not DPP.*:UserWarning")
@pytest.mark.parametrize(("num_tasks", "num_coordinates"), [(2, 3), (5, 7)])
def test_nash_mtl_agrees_with_the_sequence_of_cone_programs(num_tasks: int, num_coordinates: int) -> None:
    gradients = make_gradients(num_tasks, num_coordinates)
    expected = jd.NashMTL(num_tasks, max_norm=1.0, update_weights_every=1, optim_niter=20)(gradients)
    torch.testing.assert_close(direction(NashMTL(), gradients), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_tasks", [2, 5, 40])
def test_pcgrad_agrees_in_the_same_order(num_tasks: int) -> None:
    gradients = make_gradients(num_tasks, num_tasks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        orders = [torch.randperm(num_tasks) for _ in range(num_tasks)]
        torch.manual_seed(0)
        expected = jd.PCGrad()(gradients)
    draw = torch.stack([order.argsort() for order in orders]) / num_tasks
    torch.testing.assert_close(direction(PCGrad(), gradients, draw), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_tasks", [2, 5, 20])
def test_gradvac_agrees_in_the_same_order_over_steps(num_tasks: int) -> None:
    balancer, reference = GradVac(beta=0.3), jd.GradVac(beta=0.3, eps=1e-15)
    losses, everyone = torch.ones(num_tasks, dtype=torch.float64), torch.ones(num_tasks, dtype=torch.bool)
    state = balancer.init(losses)
    for step in range(4):
        gradients = make_gradients(num_tasks, num_tasks + 3, seed=step)
        with torch.random.fork_rng():
            torch.manual_seed(step)
            orders = [torch.randperm(num_tasks - 1) for _ in range(num_tasks)]
            torch.manual_seed(step)
            expected = reference(gradients)
        draw = torch.zeros(num_tasks, num_tasks)
        for i, order in enumerate(orders):
            draw[i, torch.arange(num_tasks) != i] = order.argsort() / num_tasks
        result, _, state = balancer.combine(state, losses, gradients, everyone, draw)
        torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_graddrop_agrees_for_the_same_draw(leak: float) -> None:
    gradients = make_gradients(5, 50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = torch.rand(50, dtype=torch.float64)
        torch.manual_seed(0)
        expected = jd.GradDrop(leak=torch.full((5,), leak, dtype=torch.float64))(gradients)
    torch.testing.assert_close(direction(GradDrop(leak=leak), gradients, draw), expected, rtol=1e-12, atol=1e-12)


def test_pcd_agrees_over_steps() -> None:
    balancer, reference = PCD(tau=0.1, beta=0.9), jd.PCD(tau=0.1, beta=0.9)
    losses, everyone = torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.bool)
    state = balancer.init(losses)
    for step in range(6):
        gradients = make_gradients(5, 7, seed=step)
        result, _, state = balancer.combine(state, losses, gradients, everyone, NOTHING)
        torch.testing.assert_close(result, reference(gradients), rtol=1e-9, atol=1e-9)


def test_cr_mogm_agrees_over_steps() -> None:
    balancer, reference = CRMOGM(UPGrad(), decay=0.7), jd.CRMOGMWeighting(jd.UPGradWeighting(projector=PROJECTOR), alpha=0.7)
    losses, everyone = torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.bool)
    state = balancer.init(losses)
    for step in range(6):
        gramian = gramian_of(make_gradients(5, 7, seed=step))
        result, state = balancer.weigh(state, losses, gramian, everyone, NOTHING)
        torch.testing.assert_close(result, reference(gramian), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("balancer", "reference"),
    [
        (UPGrad(preference=(3, 1, 1, 2, 0.5)), lambda p: jd.UPGrad(pref_vector=p, projector=PROJECTOR)),
        (DualProj(preference=(3, 1, 1, 2, 0.5)), lambda p: jd.DualProj(pref_vector=p, projector=PROJECTOR)),
        (AlignedMTL(preference=(3, 1, 1, 2, 0.5)), lambda p: jd.AlignedMTL(pref_vector=p)),
        (ConFIG(preference=(3, 1, 1, 2, 0.5)), lambda p: jd.ConFIG(pref_vector=p)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_preferences_agree(balancer: Balancer, reference: Callable[[Tensor], jd.Aggregator]) -> None:
    preference = torch.tensor([3, 1, 1, 2, 0.5], dtype=torch.float64) / 7.5
    for seed in range(5):
        gradients = make_gradients(5, 7, seed)
        torch.testing.assert_close(direction(balancer, gradients), reference(preference)(gradients), rtol=1e-5, atol=1e-8)


def gradient_of(scalarizer: js.Scalarizer, losses: Tensor) -> Tensor:
    """What the weights of a loss-level method are: the derivative of its scalar by the losses."""
    losses = losses.clone().requires_grad_()
    scalar = scalarizer(losses)
    scalar.backward()
    assert losses.grad is not None
    return losses.grad


def make_losses(step: int) -> Tensor:
    rng = torch.Generator().manual_seed(step)
    return torch.rand(5, generator=rng, dtype=torch.float64) + 0.1


# 1e-8 is added to the losses inside our logarithms.
@pytest.mark.parametrize(
    ("balancer", "reference", "tolerance"),
    [(GLS(), js.GeometricMean(), 1e-6), (STCH(mu=0.1), js.STCH(mu=0.1), 1e-12), (STCH(mu=2.0), js.STCH(mu=2.0), 1e-12)],
)
def test_weights_from_losses_agree(balancer: Balancer, reference: js.Scalarizer, tolerance: float) -> None:
    losses = make_losses(0)
    result, _ = balancer.weigh({}, losses, None, torch.ones(5, dtype=torch.bool), NOTHING)
    torch.testing.assert_close(result, gradient_of(reference, losses), rtol=tolerance, atol=0)


@pytest.mark.parametrize(("balancer", "reference"), [(UW(learning_rate=0.1), js.UW(5)), (IMTLL(learning_rate=0.1), js.IMTLL(5))])
def test_learned_scales_agree_with_sgd(balancer: Balancer, reference: js.Scalarizer) -> None:
    reference.double()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    state = balancer.init(make_losses(0))
    for step in range(5):
        weights, state = balancer.weigh(state, make_losses(step), None, torch.ones(5, dtype=torch.bool), NOTHING)
        optimizer.zero_grad()
        torch.testing.assert_close(weights, gradient_of(reference, make_losses(step)), rtol=1e-12, atol=0)
        optimizer.step()


def test_dwa_agrees_with_epochs_of_two_steps() -> None:
    balancer, reference = DWA(temperature=0.7, period=2), js.DWA(temperature=0.7)
    state = balancer.init(make_losses(0))
    for step in range(9):
        weights, state = balancer.weigh(state, make_losses(step), None, torch.ones(5, dtype=torch.bool), NOTHING)
        torch.testing.assert_close(weights, gradient_of(reference, make_losses(step)), rtol=1e-12, atol=0)
        if step % 2 == 1:
            reference.step()


def test_famo_agrees_over_steps() -> None:
    bounds = (0.0, -0.2, 0.05, -1.0, 0.0)
    balancer = FAMO(learning_rate=0.1, decay=0.01, lower_bounds=bounds)
    reference = js.FAMO(5, min_losses=torch.tensor(bounds, dtype=torch.float64), lr=0.1, weight_decay=0.01).double()
    everyone = torch.ones(5, dtype=torch.bool)
    state = balancer.init(make_losses(0))
    for step in range(6):
        before, after = make_losses(step), make_losses(step + 100)
        weights, state = balancer.weigh(state, before, None, everyone, NOTHING)
        torch.testing.assert_close(weights, gradient_of(reference, before), rtol=1e-9, atol=0)
        state = balancer.observe(state, after, everyone)
        reference.update(after)
