"""What `balance.normalise` and `balance.gradient_scale` make of an update, and gradients at the level of the features of cosine heads."""

import pytest
import torch
from torch import Tensor

from mtl.balancing.cagrad import CAGrad
from mtl.balancing.contract import Balancer
from mtl.balancing.db_mtl import DBMTL
from mtl.balancing.famo import FAMO
from mtl.balancing.graddrop import GradDrop
from mtl.balancing.imtl_g import IMTLG
from mtl.balancing.log_losses import GLS, SI
from mtl.balancing.mgda import MGDA
from mtl.balancing.moco import MoCo
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.stch import LogSTCH
from mtl.balancing.weighting import Equal, Fixed
from mtl.base.types import Params
from mtl.federation.aggregators.conflict_averse import ConflictAverse
from mtl.federation.clients.balance import Balance, make_balance
from mtl.federation.clients.lengths import LEAST
from mtl.federation.layout import is_head, shared
from mtl.federation.server import mean
from tests.federation.test_backends import model_of
from tests.federation.test_balance import COSINE, LINEAR, OBJECTIVE, a_batch, one_by_one

KEY = torch.tensor([1, 2], dtype=torch.int32)


def decide(balance: Balance, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and the update of a first step, from explicit gradients."""
    active = torch.ones(len(losses), dtype=torch.bool)
    state = balance.method.init(gradients if balance.method.needs == "gradients" else losses)
    gramian = gradients.double() @ gradients.double().T
    weights, direction, _ = balance.decide(state, losses, gradients, gramian, active, KEY)
    return weights, weights @ gradients if direction is None else direction


def one_small() -> Tensor:
    """Six tasks, one with a gradient a hundred times shorter."""
    gradients = torch.randn(6, 100_000, generator=torch.Generator().manual_seed(0))
    return gradients * torch.tensor([1, 1, 1, 1, 1, 1e-2])[:, None]


@pytest.mark.parametrize(
    "method", [NashMTL(), CAGrad(), MGDA(), IMTLG(), DBMTL(), GradDrop(), MoCo()], ids=lambda m: type(m).__name__
)
def test_length_gives_the_length_of_the_plain_sums_part_along_the_update(method: Balancer) -> None:
    gradients, losses = one_small(), torch.tensor([1, 1, 1, 1, 1, 1e-2])
    weights, update = decide(Balance(method, "parameters", True, "length"), gradients, losses)
    plain = gradients.sum(0)
    along = torch.nn.functional.cosine_similarity(update, plain, dim=0).clamp_min(LEAST) * plain.norm()
    torch.testing.assert_close(update.norm(), along, rtol=1e-3, atol=0)
    if not isinstance(method, GradDrop | MoCo):
        as_given, _ = decide(Balance(method, "parameters", True, "none"), gradients, losses)
        torch.testing.assert_close(weights / weights[0], as_given / as_given[0])


def test_weights_sum_to_the_number_of_tasks_and_may_starve_the_trunk() -> None:
    gradients = one_small()
    weights, update = decide(Balance(NashMTL(), "parameters", True, "weights"), gradients, torch.ones(6))
    assert weights.sum().item() == pytest.approx(6, rel=1e-5)
    assert update.norm() < 0.1 * gradients.sum(0).norm()


def test_what_is_left_of_opposed_gradients_is_not_blown_up() -> None:
    """MGDA of g, -g + 1e-4 h and 3 g: the shortest vector is about 5e-5 |h| long, where its two parts are |g| / 2."""
    g, h = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0)).unbind()
    gradients = torch.stack([g, -g + 1e-4 * h, 3 * g])
    balance = Balance(MGDA(), "parameters", True, "length")
    _, update = decide(balance, gradients, torch.ones(3))
    assert update.norm() < 0.01 * gradients.sum(0).norm()


def step(model, method: Balancer, level: str, **options: object) -> Params:  # type: ignore[no-untyped-def]
    balance = make_balance(method, model, level=level, **options)  # type: ignore[arg-type]
    memory = balance.memory(model.params(), 4)
    return balance.step(model, OBJECTIVE, stacked=False).gradients(dict(model.named_parameters()), memory, a_batch(), {}).grads


def test_a_method_that_compares_nothing_is_scaled_to_the_exact_length(federation) -> None:  # type: ignore[no-untyped-def]
    model, batch = model_of(COSINE, federation, torch.float64), a_batch()
    weights = (1.0, 50.0, 0.25, 7.0)
    grads = step(model, Fixed(weights), "parameters", normalise="length")
    tasks, names = one_by_one(model, batch), shared(grads)

    def flat(factors: tuple[float, ...]) -> Tensor:
        return torch.cat([sum(w * task[name] for w, task in zip(factors, tasks, strict=True)).flatten() for name in names])  # type: ignore[union-attr]

    update = torch.cat([grads[name].flatten() for name in names])
    weighted, plain = flat(weights), flat((1, 1, 1, 1))
    torch.testing.assert_close(update, weighted * (weighted @ plain) / (weighted @ weighted), rtol=1e-6, atol=1e-9)


def test_heads_together_are_as_long_as_the_plain_sum_along_them(federation) -> None:  # type: ignore[no-untyped-def]
    model, batch, weights = model_of(LINEAR, federation, torch.float64), a_batch(), (1.0, 50.0, 0.25, 7.0)
    assert not shared(model.params())
    grads = step(model, Fixed(weights), "parameters", normalise="length")
    tasks = one_by_one(model, batch)
    names = [name for name in grads if is_head(name)]

    def flat(factors: tuple[float, ...]) -> Tensor:
        return torch.cat([sum(w * task[name] for w, task in zip(factors, tasks, strict=True)).flatten() for name in names])  # type: ignore[union-attr]

    update, weighted, plain = torch.cat([grads[name].flatten() for name in names]), flat(weights), flat((1, 1, 1, 1))
    torch.testing.assert_close(update, weighted * (weighted @ plain) / (weighted @ weighted), rtol=1e-6, atol=1e-9)


def test_gradient_scale_l2_is_the_method_on_unit_gradients() -> None:
    gradients = one_small().double()
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    losses = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    for scale, divided in (("l2", unit), ("loss", gradients / losses[:, None]), ("loss+", unit / losses[:, None])):
        _, direction = decide(Balance(CAGrad(), "parameters", True, "none", scale), gradients, losses)  # type: ignore[arg-type]
        _, expected = decide(Balance(CAGrad(), "parameters", True, "none"), divided, losses)
        torch.testing.assert_close(direction, expected, rtol=1e-6, atol=1e-12)


def test_wrong_scales_are_refused(federation) -> None:  # type: ignore[no-untyped-def]
    model = model_of(LINEAR, federation)
    with pytest.raises(ValueError, match=r"balance\.normalise must be one of none, weights, length, got true"):
        make_balance(CAGrad(), model, normalise="true")
    with pytest.raises(ValueError, match=r"balance\.gradient_scale must be one of none, l2, loss, loss\+, got l1"):
        make_balance(CAGrad(), model, gradient_scale="l1")
    with pytest.raises(
        ValueError, match=r"balance\.gradient_scale=l2 is for methods on the Gramian of the gradients, and FAMO is none"
    ):
        make_balance(FAMO(), model, gradient_scale="l2")


def test_orthogonal_cosine_heads_are_compared_along_the_sphere(federation) -> None:  # type: ignore[no-untyped-def]
    """Orthogonal heads have cosines of their feature gradients other than 0: the part along the features counts for none."""
    model = model_of(COSINE, federation, torch.float64)
    balance = make_balance(Equal(), model, level="representation", conflict=True)
    batch = a_batch()
    result = balance.step(model, OBJECTIVE, stacked=False).gradients(dict(model.named_parameters()), {}, batch, {})
    features = model.trunk(batch.inputs).detach().requires_grad_()
    counts_of = (batch.positives, batch.negatives, batch.progress)
    from mtl.losses.pairs import TaskCounts

    terms = model.loss.terms(model.heads(features), TaskCounts(*counts_of))  # type: ignore[operator]
    losses = OBJECTIVE.reduce(terms, batch.targets, batch.mask, batch.valid).tasks
    rows = torch.stack([torch.autograd.grad(loss, features, retain_graph=True)[0].flatten() for loss in losses])[:3]
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert result.conflict is not None
    expected = (unit @ unit.T).fill_diagonal_(0)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(result.conflict[0, :3, :3], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "method", [FAMO(), GLS(), SI(), LogSTCH(warmup=1, nadir_steps=1), DBMTL()], ids=lambda method: type(method).__name__
)
def test_a_solved_task_does_not_stall_the_others(method: Balancer) -> None:
    """Weights of the tasks with a loss are those without the task whose loss is zero, as hinge and asymmetric losses reach it."""
    with_it, without = torch.tensor([0.5, 0.0, 2.0]), torch.tensor([0.5, 2.0])
    for normalise in ("none", "weights", "length"):
        gradients = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0, 1])[:, None]
        balance = Balance(method, "parameters", True, normalise)  # type: ignore[arg-type]
        weights, update = decide(balance, gradients, with_it)
        expected, other = decide(balance, gradients[[0, 2]], without)
        assert weights[1] == 0
        torch.testing.assert_close(weights[[0, 2]] / weights[0], expected / expected[0])
        if normalise == "length":
            torch.testing.assert_close(update, other)


@pytest.mark.parametrize("method", ["IMTLG", "ConFIG", "AlignedMTL", "UPGrad", "MGDA", "CAGrad"])
@pytest.mark.parametrize("kind", ["opposite", "zero"])
def test_a_server_stays_finite_where_updates_cancel(method: str, kind: str) -> None:
    from mtl.balancing.aligned_mtl import AlignedMTL
    from mtl.balancing.conflict_free import ConFIG
    from mtl.balancing.upgrad import UPGrad

    choices = {one.__name__: one for one in (IMTLG, ConFIG, AlignedMTL, UPGrad, MGDA, CAGrad)}
    update = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * (kind == "opposite")
    aggregator = mean(balancer=choices[method]()).aggregator
    assert isinstance(aggregator, ConflictAverse)
    direction = aggregator.combine(
        {"trunk.a": torch.stack([update, -update])}, torch.ones(2), torch.tensor([3.0, 3.0]), seed=0, round=0
    )
    assert direction["trunk.a"].isfinite().all()
    assert direction["trunk.a"].norm() <= update.norm() * 1.01
