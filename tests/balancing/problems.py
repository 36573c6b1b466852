"""Problems that every balancer is tested on, and a way to run any of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl.balancing.aligned_mtl import AlignedMTL
from mtl.balancing.cagrad import CAGrad
from mtl.balancing.conflict_free import ConFIG
from mtl.balancing.contract import Balancer, State
from mtl.balancing.cr_mogm import CRMOGM
from mtl.balancing.db_mtl import DBMTL
from mtl.balancing.dualproj import DualProj
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
from mtl.balancing.moco import MoCo
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.pcd import PCD
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.stch import STCH, LogSTCH
from mtl.balancing.uncertainty import IMTLL, UW
from mtl.balancing.upgrad import UPGrad
from mtl.balancing.weighting import RLW, Equal, Fixed

TASKS, COORDINATES, STEPS = 5, 7, 4
GIVEN = (1.0, 0.5, 2.0, 0.0, 3.0)
GIVEN_PREFERENCE = (1.0, 0.5, 2.0, 0.3, 3.0)

FROM_LOSSES: list[Balancer] = [
    Equal(),
    Fixed(GIVEN),
    RLW(),
    UW(learning_rate=0.1),
    IMTLL(learning_rate=0.1),
    DWA(period=1),
    GLS(),
    SI(),
    STCH(mu=0.2),
    LogSTCH(warmup=2, nadir_steps=1),
    CRMOGM(FAMO(), decay=0.5),
    STCH(preference=GIVEN_PREFERENCE),
    FAMO(),
    FAMO(lower_bounds=(-0.1, 0.0, -0.3, 0.02, -1.0)),
]
FROM_GRAMIAN: list[Balancer] = [
    MGDA(),
    MGDA(normalisation="loss+"),
    PCGrad(),
    GradVac(beta=0.3),
    CAGrad(),
    CAGrad(c=1.5),
    IMTLG(),
    AlignedMTL(),
    AlignedMTL(scale="median"),
    AlignedMTL(scale="mean"),
    NashMTL(),
    NashMTL(max_norm=0.0),
    FairGrad(alpha=2.0),
    FairGrad(alpha=0.5),
    UPGrad(),
    DualProj(),
    ConFIG(),
    DBMTL(),
    GradNorm(),
    PCD(beta=0.7),
    CRMOGM(UPGrad(), decay=0.5),
    UPGrad(preference=GIVEN_PREFERENCE),
    NashMTL(preference=GIVEN_PREFERENCE),
    PCGrad(preference=GIVEN_PREFERENCE),
]
FROM_GRADIENTS: list[Balancer] = [GradDrop(leak=0.2), ExcessMTL(), DBMTL(beta=0.9), MoCo()]
EVERY = FROM_LOSSES + FROM_GRAMIAN + FROM_GRADIENTS


def name(balancer: Balancer) -> str:
    return repr(balancer)


@dataclass(frozen=True)
class Problem:
    """losses, after: [STEPS, ..., T]; gradients: [STEPS, ..., T, P]; active: bool [..., T]; seed: of the draws."""

    losses: Tensor
    after: Tensor
    gradients: Tensor
    active: Tensor
    seed: int = 0


def make_problem(*batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
    """Gradients of different lengths, some in conflict."""
    rng = torch.Generator().manual_seed(seed)
    shape = (STEPS, *batch, TASKS)
    length = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.5], dtype=dtype)
    losses = torch.rand(shape, generator=rng, dtype=dtype) + 0.05
    after = losses * (1.1 - 0.3 * torch.rand(shape, generator=rng, dtype=dtype))
    gradients = torch.randn(*shape, COORDINATES, generator=rng, dtype=dtype) * length[:, None]
    return Problem(losses, after, gradients, torch.ones(*batch, TASKS, dtype=torch.bool), seed)


def make_draw(balancer: Balancer, step: int, seed: int) -> Tensor:
    """The draw of one problem, whose tasks are all TASKS, at one step."""
    rng = torch.Generator().manual_seed(1000 * seed + step)
    return torch.rand(balancer.draw_shape(TASKS, COORDINATES), generator=rng, dtype=torch.float64)


def make_draws(balancer: Balancer, problem: Problem) -> list[Tensor]:
    """The draws of each step, [..., *draw_shape], another one for each problem of the batch."""
    batch = problem.active.shape[:-1]
    number = batch.numel()
    return [
        torch.stack([make_draw(balancer, step, problem.seed + k) for k in range(number)]).unflatten(0, batch)
        if batch
        else make_draw(balancer, step, problem.seed)
        for step in range(STEPS)
    ]


def chosen(balancer: Balancer, problem: Problem, draws: list[Tensor], tasks: Tensor) -> tuple[Balancer, Problem, list[Tensor]]:
    """The same problem with these tasks only, in this order."""
    if isinstance(balancer, PCD):
        balancer = replace(balancer, primary=int(((tasks - balancer.primary) % TASKS).argmin()))
    per_task = {"weights", "lower_bounds", "preference"} & {field for field in balancer.__dict__ if getattr(balancer, field)}
    if per_task:
        values = {field: tuple(getattr(balancer, field)[t] for t in tasks.tolist()) for field in per_task}
        balancer = replace(balancer, **values)  # type: ignore[type-var]
    shape = balancer.draw_shape(TASKS, COORDINATES)
    for axis in range(1, len(shape) + 1):
        if shape[-axis] == TASKS:
            draws = [draw.index_select(-axis, tasks) for draw in draws]
    problem = replace(
        problem,
        losses=problem.losses[..., tasks],
        after=problem.after[..., tasks],
        gradients=problem.gradients[..., tasks, :],
        active=problem.active[..., tasks],
    )
    return balancer, problem, draws


def start(balancer: Balancer, problem: Problem) -> State:
    return balancer.init(problem.gradients[0] if balancer.needs == "gradients" else problem.losses[0])


def advance(balancer: Balancer, state: State, problem: Problem, draws: list[Tensor], step: int) -> tuple[Tensor, Tensor, State]:
    """One step: the direction, the weights and the next state."""
    direction, weights, state = balancer.combine(
        state, problem.losses[step], problem.gradients[step], problem.active, draws[step]
    )
    return direction, weights, balancer.observe(state, problem.after[step], problem.active)


def run(balancer: Balancer, problem: Problem, draws: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Directions [STEPS, ..., P] and weights [STEPS, ..., T]."""
    draws = make_draws(balancer, problem) if draws is None else draws
    state = start(balancer, problem)
    directions, all_weights = [], []
    for step in range(STEPS):
        direction, weights, state = advance(balancer, state, problem, draws, step)
        directions.append(direction)
        all_weights.append(weights)
    return torch.stack(directions), torch.stack(all_weights)
