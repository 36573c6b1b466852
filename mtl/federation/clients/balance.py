"""Task balancing inside a local step, of one client or of a stack of clients.

At the level `representation`, the features that all heads read, the tasks' gradients follow from the errors of their logits
(`HeadGeometry`). Their Gramian and the tasks' weights then cost no backward pass, and a single one goes through the trunk. At the level
`parameters` the gradients of the trunk are exact, and cost one backward pass for each task.

The sum of the weights differs between methods, and with it the best learning rate. `normalise` rescales a method's weights and update:

    none       no rescaling
    weights    sum_t |a_t| = T, as in a plain sum. A task with a small gradient and a large weight then makes the whole update short.
    length     |d| = cos(d, g) |g|, the length of the plain sum's part along the update, with d = sum_t a_t g_t, g = sum_t g_t and a cosine
               of at least LEAST. A method that turns away from the plain sum, often to the gradients of few images, takes shorter steps.
               The update is shorter still where the weighted gradients cancel to less than REMAINDER of sqrt(sum_t |a_t g_t|^2), so that
               rounding errors are not amplified. The gradients of the heads are rescaled by the same rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl.balancing.active import only_active
from mtl.balancing.contract import Balancer, Level
from mtl.balancing.gramian import length_of, norms, restrict
from mtl.balancing.weighting import Equal
from mtl.base import tree
from mtl.base.seeding import random_uniform
from mtl.base.types import Params
from mtl.federation.clients.balanced_step import BalancedLosses, BalancedStep
from mtl.federation.clients.gradients import Losses, PlainSum, State
from mtl.federation.clients.lengths import dot, lengths_of_tasks, plain_part
from mtl.federation.layout import is_head, shared
from mtl.federation.objective import Objective
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel

REMAINDER = 0.1
Normalise = Literal["none", "weights", "length"]
GradientScale = Literal["none", "l2", "loss", "loss+"]


@dataclass(frozen=True)
class Balance:
    """The gradient rule of a balancer; see `GradientRule`.

    Attributes:
        method: the balancer.
        level: where gradients are compared, `representation` or `parameters`.
        heads: whether the weights apply to the heads too, or only to the shared parameters.
        normalise: how the weights and the update are rescaled, see the module.
        gradient_scale: what the gradients are divided by before the method gets their Gramian: nothing (`none`), their length (`l2`), the
            loss of their task (`loss`), or both (`loss+`).
        conflict: whether the cosines of the tasks' gradients are logged.
    """

    method: Balancer
    level: Level
    heads: bool
    normalise: Normalise = "none"
    gradient_scale: GradientScale = "none"
    conflict: bool = False

    compiles = False  # solvers branch on their results

    @property
    def name(self) -> str:
        """See `GradientRule`."""
        return type(self.method).__name__

    @property
    def compares(self) -> bool:
        """Whether the gradient of each task is needed, not only that of their weighted sum."""
        cheap_lengths = self.normalise == "length" and self.level == "representation"
        return self.conflict or cheap_lengths or self.method.needs != "losses"

    @property
    def remembers_gradients(self) -> bool:
        """See `GradientRule`."""
        return "representation" not in self.method.levels

    def step(self, model: MultiTaskModel, objective: Objective, *, stacked: bool) -> BalancedStep:
        """See `GradientRule`."""
        return BalancedStep(self, model, objective, stacked=stacked)

    def step_of_losses(self, losses: Callable[[Any], Losses]) -> BalancedLosses:
        """See `GradientRule`."""
        return BalancedLosses(self, losses)

    def bytes_of_step(self, params: Params, num_tasks: int) -> int:
        """See `GradientRule`: the tasks' gradients of the trunk, and a copy of them."""
        if not self.compares or self.level != "parameters":
            return 0
        return 2 * num_tasks * tree.num_bytes({name: params[name] for name in shared(params)})

    def memory(self, params: Params, num_tasks: int) -> State:
        """See `GradientRule`: the balancer's state."""
        like = next(iter(params.values()))
        shape: tuple[int, ...] = (num_tasks,)
        if self.method.needs == "gradients" and self.level == "parameters":
            shape += (sum(params[name].numel() for name in shared(params)),)
        elif self.method.needs == "gradients":
            shape += (1,)  # the size of a batch is unknown here, and no state depends on it
        return self.method.init(torch.zeros(shape, dtype=like.dtype))

    def decide(
        self, memory: State, losses: Tensor, rows: Tensor | None, gramian: Tensor | None, active: Tensor, draw_key: Tensor
    ) -> tuple[Tensor, Tensor | None, State]:
        """Return the tasks' weights, the direction and the balancer's state after a step.

        Args:
            memory: the balancer's state.
            losses: [..., T].
            rows: [..., T, P], the tasks' gradients; None where they were not computed.
            gramian: [..., T, T], of these; None where the tasks are not compared.
            active: bool [..., T], the tasks with a known label in the batch.
            draw_key: int32 [..., 2], key of the random numbers.

        Returns:
            Weights [..., T]; the direction [..., P], or None where it is the weighted sum of the rows; the new state.
        """
        method, direction = self.method, None
        if method.needs == "gradients":
            assert rows is not None
            draw = self._draw(draw_key, losses, *rows.shape[-2:])
            direction, weights, memory = method.combine(memory, losses, rows, active, draw)
        else:
            unit = self._unit(losses, gramian, active) if method.needs == "gramian" else torch.ones_like(losses)
            scaled = None if gramian is None else gramian * unit[..., :, None] * unit[..., None, :]
            weights, memory = method.weigh(memory, losses, scaled, active, self._draw(draw_key, losses, losses.shape[-1], 0))
            weights = (weights * unit).to(losses.dtype)
        if gramian is None and self.normalise == "length":
            return weights, direction, memory  # the caller rescales: `weighted_update`
        lengths = None
        if gramian is not None and self.normalise == "length":
            square, ones, weights64 = restrict(gramian, active), active.double(), weights.double()
            plain = length_of(ones, square)
            if direction is None:
                update = length_of(weights64, square)
                along = ((square @ ones[..., None]).squeeze(-1) * weights64).sum(-1, keepdim=True)
                least = REMAINDER * (weights64 * norms(square)).norm(dim=-1, keepdim=True)
            else:
                assert rows is not None
                direction64 = direction.double()
                update, least = direction64.norm(dim=-1, keepdim=True), torch.zeros_like(plain)
                along = (only_active(rows, active[..., None]).double().sum(-2) * direction64).sum(-1, keepdim=True)
            lengths = torch.maximum(update, least), plain_part(update, plain, along)
        scale = self.scale(weights, active, lengths).to(losses.dtype)
        return weights * scale, None if direction is None else direction * scale, memory

    def scale(self, weights: Tensor, active: Tensor, lengths: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the factor by which a method's weights and update are rescaled, [..., 1].

        Args:
            weights: [..., T].
            active: bool [..., T], the tasks with a known label in the batch.
            lengths: present and target length of the update, [..., 1] each; with normalise=length only.
        """
        if self.normalise == "none":
            return torch.ones_like(weights[..., :1])
        length, target = weights.abs().sum(-1, keepdim=True), active.sum(-1, keepdim=True)
        if lengths is not None:
            length, target = lengths
        return torch.where(length == 0, 1, target / torch.where(length == 0, 1, length))

    def weigh_heads(self, plain: Params, weights: Tensor, active: Tensor) -> tuple[Params, Tensor]:
        """Return the weighted gradients of the parameters of single tasks, and the factors of the tasks, [..., T].

        Args:
            plain: gradients of the plain sum of the losses, with a row for each task; those without rows belong to the last task.
            weights: [..., T], the tasks' weights.
            active: bool [..., T], the tasks with a known label in the batch.
        """
        factors = torch.ones_like(weights)
        if self.heads:
            factors = weights
            if self.normalise == "length":
                lengths, weights64 = lengths_of_tasks(plain, weights), weights.double()
                update = (weights64 * lengths).norm(dim=-1, keepdim=True)
                along = (weights64 * lengths.square()).sum(-1, keepdim=True)
                target = plain_part(update, lengths.norm(dim=-1, keepdim=True), along)
                factors = weights * self.scale(weights, active, (update, target)).to(weights)
        return {name: value * _factors_for(name, value, factors) for name, value in plain.items()}, factors

    def weighted_update(self, gradient: Callable[[Tensor], Params], weights: Tensor, active: Tensor) -> tuple[Params, Tensor]:
        """Return update and task weights where the tasks' gradients are not compared.

        Args:
            gradient: returns the gradient of the weighted sum of the losses, at the cost of a backward pass; called a second time, for the
                plain sum, with normalise=length.
            weights: [..., T].
            active: bool [..., T], the tasks with a known label in the batch.
        """
        moved = gradient(weights)
        if self.normalise != "length":
            return moved, weights
        plain, num_axes = gradient(torch.ones_like(weights)), weights.dim() - 1
        update = dot(moved, moved, num_axes).sqrt()
        target = plain_part(update, dot(plain, plain, num_axes).sqrt(), dot(moved, plain, num_axes))
        factor = self.scale(weights, active, (update, target)).to(weights)
        shaped = {name: factor.view(*factor.shape[:-1], *[1] * (value.dim() - factor.dim() + 1)) for name, value in moved.items()}
        return {name: value * shaped[name] for name, value in moved.items()}, weights * factor

    def _unit(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        """Return one over `gradient_scale`'s divisor of the gradients, float64 [..., T]; 1 where the divisor is 0."""
        divisor = torch.ones_like(losses, dtype=torch.float64)
        if self.gradient_scale in ("l2", "loss+"):
            assert gramian is not None
            divisor = divisor * norms(restrict(gramian, active))
        if self.gradient_scale in ("loss", "loss+"):
            divisor = divisor * only_active(losses, active).abs()
        return torch.where(divisor > 0, 1 / divisor, 1)

    def _draw(self, key: Tensor, like: Tensor, num_tasks: int, num_coordinates: int) -> Tensor:
        """Return the balancer's uniform random numbers, [..., *draw_shape]."""
        shape = self.method.draw_shape(num_tasks, num_coordinates)
        index = torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=key.device)
        draw: Tensor = random_uniform(key[..., None, :], index).to(like).unflatten(-1, shape)
        return draw


def make_balance(
    method: Balancer,
    model: MultiTaskModel,
    *,
    level: str = "auto",
    heads: bool | None = None,
    normalise: str = "none",
    gradient_scale: str = "none",
    conflict: bool = False,
) -> Balance | PlainSum:
    """Return the gradient rule of a balancer: `PlainSum` for equal weights where nothing is compared, else `Balance`.

    Args:
        method: the balancer.
        model: the model.
        level: as in `Balance`; `auto` takes the cheapest that the method and the model allow.
        heads: as in `Balance`; None for the choice of the method's authors.
        normalise: as in `Balance`.
        gradient_scale: as in `Balance`.
        conflict: as in `Balance`.

    Raises:
        ValueError: the method or the model cannot work at this level, or an option is unknown.
    """
    if isinstance(method, Equal) and not conflict:
        return PlainSum()
    if level not in ("auto", *get_args(Level)):
        raise ValueError(f"balance.level must be auto or one of {', '.join(get_args(Level))}, got {level}")
    for option, value, choices in (("normalise", normalise, Normalise), ("gradient_scale", gradient_scale, GradientScale)):
        if value not in get_args(choices):
            raise ValueError(f"balance.{option} must be one of {', '.join(get_args(choices))}, got {value}")
    if gradient_scale != "none" and method.needs != "gramian":
        raise ValueError(
            f"balance.gradient_scale={gradient_scale} is for methods on the Gramian of the gradients, and {type(method).__name__} is none"
        )
    if hasattr(model.heads, "penalty"):
        raise ValueError(
            f"balancer must be equal, without balance.conflict, for {type(model.heads).__name__}: their penalty is not a task's"
        )
    fused = isinstance(model.trunk, Trunk) and hasattr(model.heads, "directions") and model.detector is None
    possible = [name for name in method.levels if fused or name == "parameters"]
    chosen = possible[0] if level == "auto" else level
    if chosen not in possible:
        reason = f"{type(method).__name__} keeps gradients in its state" if fused else "the tasks do not read the same features"
        raise ValueError(f"balance.level must be parameters: {reason}; got {chosen}")
    weigh_heads = method.heads if heads is None else heads
    return Balance(method, chosen, weigh_heads, normalise, gradient_scale, conflict)  # type: ignore[arg-type]


def _factors_for(name: str, value: Tensor, factors: Tensor) -> Tensor:
    """Return the factors [..., T] of the tasks that a parameter belongs to, in a shape that broadcasts against it."""
    num_axes = factors.dim() - 1
    selected = factors[..., : value.shape[num_axes]] if is_head(name) else factors[..., -1]
    return selected.to(value.dtype).view(*selected.shape, *[1] * (value.dim() - selected.dim()))
