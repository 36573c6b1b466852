import pytest
import torch
import torch.nn.functional as F

from mtl.balancing.complementarity import solve_complementarity
from mtl.balancing.gramian import HeadGeometry, conflict, gramian_of


def test_gramian_of_the_heads_is_that_of_the_explicit_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, generator=rng).requires_grad_()
    weight, bias = torch.randn(3, 4, generator=rng), torch.randn(3, generator=rng)
    targets, mask = torch.rand(6, 3, generator=rng) < 0.5, torch.rand(6, 3, generator=rng) < 0.6
    logits = F.linear(features, weight, bias).detach().requires_grad_()

    def losses(z: torch.Tensor) -> torch.Tensor:
        return (F.binary_cross_entropy_with_logits(z, targets.float(), reduction="none") * mask).sum(0) / 6

    (errors,) = torch.autograd.grad(losses(logits).sum(), logits)
    per_task = losses(F.linear(features, weight, bias))
    rows = [torch.autograd.grad(loss, features, retain_graph=True)[0].flatten() for loss in per_task]
    explicit = gramian_of(torch.stack(rows))
    heads = HeadGeometry(weight, features.detach(), cosine=False)
    torch.testing.assert_close(heads.gramian(errors), explicit, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(heads.rows(errors), torch.stack(rows), rtol=1e-5, atol=1e-7)
    both = HeadGeometry(weight.expand(2, -1, -1), features.detach().expand(2, -1, -1), cosine=False)
    torch.testing.assert_close(both.gramian(errors.expand(2, -1, -1)), explicit.expand(2, -1, -1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stacked", [False, True])
def test_gramian_of_cosine_heads_is_that_of_autograd_through_the_normalisation(stacked: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, generator=rng, dtype=torch.float64) * torch.tensor([0.01, 1, 5, 1, 30, 1])[:, None]
    weight = F.normalize(torch.randn(3, 4, generator=rng, dtype=torch.float64), dim=-1)
    factors = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    raw = features.clone().requires_grad_()
    cosines = F.normalize(raw, dim=-1) @ weight.T
    losses = (factors * cosines**2).sum(0)
    rows = [torch.autograd.grad(loss, raw, retain_graph=True)[0] for loss in losses]
    errors = (2 * factors * cosines).detach()
    explicit = torch.stack([row.flatten() for row in rows])
    if stacked:
        heads = HeadGeometry(weight.expand(2, 3, 4), features.expand(2, 6, 4), cosine=True)
        expected, errors = explicit.expand(2, -1, -1), errors.expand(2, -1, -1)
    else:
        heads, expected = HeadGeometry(weight, features, cosine=True), explicit
    torch.testing.assert_close(heads.rows(errors), expected)
    torch.testing.assert_close(heads.gramian(errors), expected @ expected.mT)
    torch.testing.assert_close(heads.pull_back(errors).flatten(-2), expected.sum(-2))


def test_conflict_by_hand() -> None:
    # Cosines 0, -1/sqrt 2, -1/sqrt 2 of (1, 0), (0, 2), (-3, -3); a task without gradient is in no pair.
    gradients = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -3.0], [0.0, 0.0]])
    everyone = torch.ones(4, dtype=torch.bool)
    result = conflict(gramian_of(gradients), everyone)
    assert result.mean_cosine.item() == pytest.approx(-(2**0.5) / 3)
    assert result.conflicting.item() == pytest.approx(2 / 3)
    two = conflict(gramian_of(gradients), torch.tensor([True, True, False, True]))
    assert (two.mean_cosine.item(), two.conflicting.item()) == (0, 0)
    one = conflict(gramian_of(gradients), torch.tensor([True, False, False, False]))
    assert (one.mean_cosine.item(), one.conflicting.item()) == (0, 0)


@pytest.mark.parametrize("num", [1, 2, 5, 40])
@pytest.mark.parametrize("rank", [0.3, 1.0, 3.0])
def test_complementarity_holds_for_a_whole_batch(num: int, rank: float) -> None:
    rng = torch.Generator().manual_seed(num)
    factors = torch.randn(20, num, max(1, int(rank * num)), generator=rng, dtype=torch.float64)
    matrix = factors @ factors.mT / num + 1e-8 * torch.eye(num, dtype=torch.float64)
    offset = torch.randn(20, num, generator=rng, dtype=torch.float64)
    offset = offset.where(torch.rand(20, 1, generator=rng) < 0.5, (matrix @ offset[..., None]).squeeze(-1))
    x, _ = solve_complementarity(matrix, offset, torch.zeros(20, num, dtype=torch.bool))
    y = (matrix @ x[..., None]).squeeze(-1) + offset
    assert (x >= 0).all()
    # A nearly singular matrix makes a large x, whose residual is rounding.
    assert (y >= -1e-12 * (1 + x.amax(-1, keepdim=True))).all()
    assert ((x * y).abs() <= 1e-11 * (1 + x.amax(-1, keepdim=True) ** 2)).all()
