"""Values worked out by hand, and options that make no sense."""

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from mtl.balancing.aligned_mtl import AlignedMTL
from mtl.balancing.cagrad import CAGrad
from mtl.balancing.contract import Balancer
from mtl.balancing.cr_mogm import CRMOGM
from mtl.balancing.db_mtl import DBMTL
from mtl.balancing.dwa import DWA
from mtl.balancing.excess_mtl import ExcessMTL
from mtl.balancing.fairgrad import FairGrad
from mtl.balancing.famo import FAMO
from mtl.balancing.graddrop import GradDrop
from mtl.balancing.gradnorm import GradNorm
from mtl.balancing.gradvac import GradVac
from mtl.balancing.imtl_g import IMTLG
from mtl.balancing.log_losses import GLS, SI
from mtl.balancing.mgda import MGDA
from mtl.balancing.moco import MoCo, project_to_simplex
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.pcd import PCD
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.stch import STCH, LogSTCH
from mtl.balancing.uncertainty import IMTLL, UW
from mtl.balancing.upgrad import UPGrad
from mtl.balancing.weighting import RLW, Equal, Fixed

NOTHING = torch.zeros(0)
BOTH = torch.tensor([True, True])


def pair(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weigh(balancer: Balancer, *steps: Tensor, gramian: Tensor | None = None) -> list[list[float]]:
    """The weights at each step, from the losses of each."""
    state, result = balancer.init(steps[0]), []
    for losses in steps:
        weights, state = balancer.weigh(state, losses, gramian, BOTH, NOTHING)
        result.append(weights.tolist())
    return result


def test_fixed_and_equal_weights() -> None:
    assert weigh(Equal(), pair(3, 4)) == [[1, 1]]
    assert weigh(Fixed((0.5, 2.0)), pair(3, 4)) == [[0.5, 2]]


def test_rlw_is_a_softmax_of_normal_numbers() -> None:
    draw = pair(0.1, 0.975)
    weights, _ = RLW().weigh({}, pair(3, 4), None, BOTH, draw)
    z = [NormalDist().inv_cdf(u) for u in draw.tolist()]
    assert weights.tolist() == pytest.approx([math.exp(x) / sum(map(math.exp, z)) for x in z], rel=1e-9)
    edge, _ = RLW().weigh({}, pair(3, 4), None, BOTH, pair(0.0, 1 - 2**-53))
    assert edge.isfinite().all()


def test_log_losses_by_hand() -> None:
    # The geometric mean of 1 and 4 is 2; its derivatives are 2 / (2 * 1) and 2 / (2 * 4).
    assert weigh(GLS(), pair(1, 4))[0] == pytest.approx([1, 0.25], rel=1e-7)
    assert weigh(SI(), pair(1, 4))[0] == pytest.approx([1, 0.25], rel=1e-7)
    forty = torch.full((40,), 0.05)
    weights, _ = GLS().weigh({}, forty, None, forty > 0, NOTHING)
    assert weights.tolist() == pytest.approx([1 / 40] * 40)


def test_learned_scales_rest_where_log_losses_weigh() -> None:
    losses = [pair(0.5, 4)] * 300
    assert weigh(UW(learning_rate=0.5), *losses)[-1] == pytest.approx([1, 0.125], rel=1e-6)
    assert weigh(IMTLL(learning_rate=0.25), *losses)[-1] == pytest.approx([2, 0.25], rel=1e-6)


def test_log_stch_by_hand() -> None:
    # One step of warm-up without and one with the nadir, (2, 5); then both stand at half and twice theirs.
    result = weigh(LogSTCH(mu=0.5, warmup=2, nadir_steps=1), pair(9, 9), pair(2, 5), pair(1, 10))
    assert result[1] == pytest.approx([1 / 2, 1 / 5], rel=1e-7)
    low, high = 0.5**2, 2.0**2
    assert result[2] == pytest.approx([2 * low / (low + high) / 1, 2 * high / (low + high) / 10], rel=1e-7)


def test_gradnorm_by_hand() -> None:
    # Lengths 1 and 3, then losses at 1/2 and 1 of their first: paces 2/3 and 4/3.
    gramian = torch.diag(pair(1, 9))
    balancer = GradNorm(alpha=1.0, learning_rate=0.1)
    result = weigh(balancer, pair(2, 2), pair(1, 2), pair(1, 2), gramian=gramian)
    assert result[0] == [1, 1]
    # First step: targets are the mean length 2, so w = (1 + .1, 1 - .3), scaled by 2 / 1.8.
    first = [1.1 / 0.9, 0.7 / 0.9]
    assert result[1] == pytest.approx(first)
    # Second: lengths 1.222 and 2.333, mean 1.778, targets 1.185 and 2.370: the first is too long, the second too short.
    second = [first[0] - 0.1, first[1] + 0.3]
    assert result[2] == pytest.approx([2 * w / sum(second) for w in second])


def test_db_mtl_by_hand() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    losses = pair(0.5, 0.25)
    # Log-loss gradients (6, 8) and (0, 4), lengths 10 and 4: factors 1 and 2.5.
    balancer = DBMTL()
    direction, weights, _ = balancer.combine(balancer.init(losses), losses, gradients, BOTH, NOTHING)
    assert weights.tolist() == pytest.approx([2, 10], rel=1e-6)
    assert direction.tolist() == pytest.approx([6, 18], rel=1e-6)
    # With memory: y = .2 of them at the first step, then .6 of the new and .4 of that with beta .8 halved by the step.
    balancer = DBMTL(beta=0.8, decay=1.0)
    state = balancer.init(gradients)
    direction, _, state = balancer.combine(state, losses, gradients, BOTH, NOTHING)
    assert direction.tolist() == pytest.approx([1.2, 3.6], rel=1e-6)
    direction, _, _ = balancer.combine(state, losses, -gradients, BOTH, NOTHING)
    assert direction.tolist() == pytest.approx([0.52 * -6, 0.52 * -18], rel=1e-6)


def test_moco_by_hand() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    balancer = MoCo(beta=0.5, beta_decay=0.0, gamma=0.1, gamma_decay=0.0)
    direction, weights, _ = balancer.combine(balancer.init(gradients), pair(2, 4), gradients, BOTH, NOTHING)
    # y = half of (1.2, 1.6) and (0, 4); Y Y^T = ((1, 1.6), (1.6, 4)); w = (.5, .5) - .1 (1.3, 2.8), raised by .205 to sum 1.
    assert weights.tolist() == pytest.approx([0.575, 0.425])
    assert direction.tolist() == pytest.approx([0.575 * 0.6, 0.575 * 0.8 + 0.425 * 2])


def test_projection_to_the_simplex_by_hand() -> None:
    values = pair(0.9, 0.5, -3.0)
    everyone = torch.tensor([True, True, True])
    assert project_to_simplex(values, everyone).tolist() == pytest.approx([0.7, 0.3, 0])
    assert project_to_simplex(values, torch.tensor([False, True, True])).tolist() == pytest.approx([0, 1, 0])


def test_pcgrad_by_hand_in_the_order_drawn() -> None:
    # Row 0 visits 1, then 2: (1, 0) becomes (.5, .5), then (0, 0). Row 1 visits 2, with which it does not conflict, then 0: (0, 1).
    # Row 2 visits 0, then 1: (0, -1), which conflicts with g_1, so (-.5, -.5).
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    everyone = torch.ones(3, dtype=torch.bool)
    draw = torch.tensor([[0.0, 0.1, 0.2], [0.2, 0.0, 0.1], [0.1, 0.2, 0.0]])
    direction, weights, _ = PCGrad().combine({}, torch.ones(3, dtype=torch.float64), gradients, everyone, draw)
    assert weights.tolist() == pytest.approx([3, 2, 1.5])
    assert direction.tolist() == pytest.approx([-0.5, 0.5])


def test_graddrop_by_hand() -> None:
    # Purities 3/4, 1/4, 1 and, without any gradient, 1/2.
    gradients = torch.tensor([[3.0, 1.0, 2.0, 0.0], [-1.0, -3.0, 2.0, 0.0]], dtype=torch.float64)
    draw = pair(0.7, 0.7, 0.99, 0.5)
    direction, weights, _ = GradDrop(leak=0.0).combine({}, pair(1, 1), gradients, BOTH, draw)
    assert direction.tolist() == [3, -3, 4, 0]
    assert weights.tolist() == [1, 1]
    leaky, _, _ = GradDrop(leak=0.5).combine({}, pair(1, 1), gradients, BOTH, draw)
    assert leaky.tolist() == pytest.approx([2.5, -2.5, 4, 0])


def test_famo_without_looking_back_keeps_the_pace_of_the_log_losses() -> None:
    assert weigh(FAMO(), pair(1, 4), pair(1, 4))[1] == pytest.approx([0.8, 0.2], rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed((1.0, -1.0)), r"balancer.weights must be >= 0 and finite, got \(1.0, -1.0\)"),
        (lambda: Fixed((1.0,)).init(pair(1, 2)), "balancer.weights must be one per task, 2, got 1"),
        (lambda: FAMO(lower_bounds=(1.0,)).init(pair(1, 2)), "balancer.lower_bounds must be none or one per task, 2, got 1"),
        (lambda: FAMO(learning_rate=0), "balancer.learning_rate must be > 0, got 0"),
        (lambda: FAMO(decay=-1), "balancer.decay must be >= 0, got -1"),
        (lambda: UW(learning_rate=-1), "balancer.learning_rate must be > 0, got -1"),
        (lambda: IMTLL(learning_rate=-1), "balancer.learning_rate must be > 0, got -1"),
        (lambda: DWA(temperature=0), "balancer.temperature must be > 0, got 0"),
        (lambda: DWA(period=0), "balancer.period must be >= 1, got 0"),
        (lambda: STCH(mu=0), "balancer.mu must be > 0, got 0"),
        (lambda: LogSTCH(mu=0), "balancer.mu must be > 0, got 0"),
        (
            lambda: LogSTCH().init(pair(1, 2)),
            "balancer.warmup and nadir_steps must be numbers of steps where no run sets them, got null",
        ),
        (lambda: DWA().init(pair(1, 2)), "balancer.period must be a number of steps where no run sets it, got null"),
        (lambda: LogSTCH(nadir_steps=0), "balancer.nadir_steps must be >= 1, got 0"),
        (lambda: LogSTCH(warmup=1, nadir_steps=2), "balancer.warmup must be >= nadir_steps 2, got 1"),
        (lambda: MGDA(normalisation="l3"), r"balancer.normalisation must be one of none, l2, loss, loss\+, got l3"),
        (lambda: CAGrad(c=0), "balancer.c must be > 0, got 0"),
        (lambda: AlignedMTL(scale="max"), "balancer.scale must be one of min, median, mean, got max"),
        (lambda: NashMTL(max_norm=-1), "balancer.max_norm must be >= 0, got -1"),
        (lambda: FairGrad(alpha=0), "balancer.alpha must be > 0, got 0"),
        (lambda: GradVac(beta=2), r"balancer.beta must be in \[0, 1\], got 2"),
        (lambda: GradDrop(leak=2), r"balancer.leak must be in \[0, 1\], got 2"),
        (lambda: ExcessMTL(step_size=0), "balancer.step_size must be > 0, got 0"),
        (lambda: DBMTL(beta=1), r"balancer.beta must be in \[0, 1\), got 1"),
        (lambda: DBMTL(decay=-1), "balancer.decay must be >= 0, got -1"),
        (lambda: GradNorm(alpha=-1), "balancer.alpha must be >= 0, got -1"),
        (lambda: GradNorm(learning_rate=0), "balancer.learning_rate must be > 0, got 0"),
        (lambda: MoCo(beta=0), r"balancer.beta must be in \(0, 1\], got 0"),
        (lambda: MoCo(rho=-1), "balancer.rho must be >= 0, got -1"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_warm_up_is_a_twentieth_of_the_run_and_an_epoch_a_round() -> None:
    assert LogSTCH().for_run(steps_per_round=8, num_rounds=100) == LogSTCH(warmup=40, nadir_steps=8)
    assert LogSTCH().for_run(steps_per_round=3, num_rounds=2) == LogSTCH(warmup=1, nadir_steps=1)
    assert LogSTCH(warmup=7).for_run(steps_per_round=8, num_rounds=100) == LogSTCH(warmup=7, nadir_steps=1)
    assert DWA().for_run(steps_per_round=7.6, num_rounds=3) == DWA(period=8)
    assert DWA(period=5).for_run(steps_per_round=7.6, num_rounds=3) == DWA(period=5)
    assert CRMOGM(DWA()).for_run(steps_per_round=8, num_rounds=3) == CRMOGM(DWA(period=8))


def test_pcd_by_hand() -> None:
    """h_1 = (1, 0), h_2 = (-.6, .8) after scaling: h_1 gives task 2 -.6 and not tau = .1. d = h_1 + mu h_2 with h_2 . d = .1: mu = .7."""
    gradients = torch.tensor([[2.0, 0.0], [-1.8, 2.4]], dtype=torch.float64)
    balancer = PCD(tau=0.1)
    direction, weights, _ = balancer.combine(balancer.init(pair(1, 1)), pair(1, 1), gradients, BOTH, NOTHING)
    length = math.hypot(0.58, 0.56)
    assert direction.tolist() == pytest.approx([2 * 0.58 / length, 2 * 0.56 / length], rel=1e-6)
    assert weights.tolist() == pytest.approx([1 / length, 2 * 0.7 / 3 / length], rel=1e-6)


def test_pcd_drops_constraints_that_cannot_all_hold() -> None:
    """Tasks 2 and 3 want opposite things: the primary gradient is followed."""
    gradients = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    everyone, losses = torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.float64)
    direction, _, _ = PCD().combine(PCD().init(losses), losses, gradients, everyone, NOTHING)
    assert direction.tolist() == pytest.approx([1, 0, 0])


def test_cr_mogm_by_hand() -> None:
    """GLS of (1, 4) weighs (1, .25) and of (4, 1) (.25, 1); half of the last weights stays."""
    result = weigh(CRMOGM(GLS(), decay=0.5), pair(1, 4), pair(4, 1))
    assert result[0] == pytest.approx([1, 0.25], rel=1e-6)
    assert result[1] == pytest.approx([0.625, 0.625], rel=1e-6)


def test_preferences_by_hand() -> None:
    """Preferences (3, 1) are (.75, .25)."""
    p = (3.0, 1.0)
    assert weigh(SI(preference=p), pair(1, 4))[0] == pytest.approx([1.5, 0.125], rel=1e-6)
    mean = 4**0.25
    assert weigh(GLS(preference=p), pair(1, 4))[0] == pytest.approx([0.75 * mean, 0.25 * mean / 4], rel=1e-6)
    high, low = math.exp(0.75 * 1), math.exp(0.25 * 4)
    assert weigh(STCH(preference=p), pair(1, 4))[0] == pytest.approx([0.75 * high / (high + low), 0.25 * low / (high + low)])
    # Orthogonal gradients of length 1 and 2: G a = 2 p / a gives a_i = sqrt(2 p_i) / |g_i|.
    gramian = torch.diag(pair(1, 4))
    assert weigh(NashMTL(preference=p, max_norm=0), pair(1, 1), gramian=gramian)[0] == pytest.approx(
        [1.5**0.5, 0.5**0.5 / 2], rel=1e-6
    )
    # alpha = 2: |g_i|^2 a_i = (a_i / (2 p_i))^(-1/2), so a_i = (2 p_i)^(1/3) |g_i|^(-4/3).
    alpha = FairGrad(alpha=2.0, preference=p)
    assert weigh(alpha, pair(1, 1), gramian=gramian)[0] == pytest.approx(
        [1.5 ** (1 / 3), 0.5 ** (1 / 3) * 2 ** (-4 / 3)], rel=1e-6
    )
    # IMTL-G: projections 3 to 1 on orthogonal gradients, a_i ~ p_i / |g_i|.
    assert weigh(IMTLG(preference=p), pair(1, 1), gramian=gramian)[0] == pytest.approx([0.75 / 0.875, 0.125 / 0.875])
    # Without conflicts PCGrad is the sum of 2 p_i g_i.
    assert PCGrad(preference=p).weigh({}, pair(1, 1), gramian, BOTH, torch.rand(2, 2))[0].tolist() == pytest.approx([1.5, 0.5])


def test_preferences_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"balancer.preference must be > 0 and finite for every task, got \[1.0, 0.0\]"):
        UPGrad(preference=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"balancer.preference must be one per task, 2, got 3"):
        CAGrad(preference=(1.0, 2.0, 3.0)).init(pair(1, 2))
    with pytest.raises(ValueError, match=r"balancer.of must be one that gives task weights, and GradDrop works on gradients"):
        CRMOGM(GradDrop())
    with pytest.raises(ValueError, match=r"balancer.primary must be in \[0, 1\], got 2"):
        PCD(primary=2).init(pair(1, 2))


@pytest.mark.parametrize("balancer", [UW(), IMTLL()], ids=lambda balancer: type(balancer).__name__)
def test_the_scale_of_a_solved_task_stands_still(balancer: Balancer) -> None:
    """s would grow by its rate in every step, and the first loss after a thousand of them would throw it far below."""
    result = weigh(balancer, *[pair(0, 1)] * 1000)
    assert result[-1][0] == result[0][0]
