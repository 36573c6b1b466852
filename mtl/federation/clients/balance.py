"""Task balancing inside a local step, of one client or of a stack of clients.

At the level of the `representation`, the features that all heads read, the gradients of the tasks follow from the errors of their logits
(`HeadGeometry`): their Gramian, and with it the tasks' weights, cost no backward pass, and one goes through the trunk. At the level of the
`parameters` the gradients of the trunk are exact, at one backward pass for each task.

What a method's weights sum to differs between methods, and with it the learning rate that serves. `normalise` scales what a method gives:

    none       as the method gives it
    weights    sum_t |a_t| = T, as in a plain sum; a task with a small gradient and a large weight then makes the whole update short
    length     as long as the part of the plain sum along it: |d| = cos(d, g) |g|, d = sum_t a_t g_t, g = sum_t g_t, with a cosine of at
               least LEAST. A method that turns away from the plain sum, often to the gradients of few images, takes shorter steps. Less
               still where the weighted gradients cancel one another to less than REMAINDER of sqrt(sum_t |a_t g_t|^2), so that what is
               left by rounding is not blown up.
               The same goes for the gradients of the heads: together they are as long as the part of the plain sum's along them.
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
from mtl.federation.layout import is_head, shared
from mtl.federation.objective import Objective
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel

LEAST, REMAINDER = 0.1, 0.1
Normalise = Literal["none", "weights", "length"]
GradientScale = Literal["none", "l2", "loss", "loss+"]


@dataclass(frozen=True)
class Balance:
    """level: where gradients are compared; heads: whether the weights reach the heads too, or only the shared part; normalise: how what a
    method gives is scaled (see above); gradient_scale: what the gradients are divided by before a method that works on their Gramian sees
    them: nothing, their length (l2), their task's loss, or both (loss+); conflict: whether cosines of the tasks' gradients are summed up.
    """

    method: Balancer
    level: Level
    heads: bool
    normalise: Normalise = "none"
    gradient_scale: GradientScale = "none"
    conflict: bool = False

    compiles = False  # solvers look at what they found

    @property
    def name(self) -> str:
        return type(self.method).__name__

    @property
    def compares(self) -> bool:
        """Whether the tasks' gradients are needed one by one."""
        lengths = self.normalise == "length" and self.level == "representation"  # where they cost nothing
        return self.conflict or lengths or self.method.needs != "losses"

    @property
    def remembers_gradients(self) -> bool:
        return "representation" not in self.method.levels

    def step(self, model: MultiTaskModel, objective: Objective, *, stacked: bool) -> BalancedStep:
        """See `GradientRule`."""
        return BalancedStep(self, model, objective, stacked=stacked)

    def step_of_losses(self, losses: Callable[[Any], Losses]) -> BalancedLosses:
        """See `GradientRule`."""
        return BalancedLosses(self, losses)

    def bytes_of_step(self, params: Params, num_tasks: int) -> int:
        """See `GradientRule`: the tasks' gradients of the trunk and what is made of them."""
        if not self.compares or self.level != "parameters":
            return 0
        return 2 * num_tasks * tree.num_bytes({name: params[name] for name in shared(params)})

    def memory(self, params: Params, num_tasks: int) -> State:
        """What a client's balancer remembers before its first step."""
        like = next(iter(params.values()))
        shape: tuple[int, ...] = (num_tasks,)
        if self.method.needs == "gradients" and self.level == "parameters":
            shape += (sum(params[name].numel() for name in shared(params)),)
        elif self.method.needs == "gradients":
            shape += (1,)  # the size of a batch is not known, and nothing of this shape is remembered
        return self.method.init(torch.zeros(shape, dtype=like.dtype))

    def decide(
        self, memory: State, losses: Tensor, rows: Tensor | None, gramian: Tensor | None, active: Tensor, draw_key: Tensor
    ) -> tuple[Tensor, Tensor | None, State]:
        """The tasks' weights [..., T], the direction [..., P] where it is not the rows' weighted sum, and what is remembered.

        losses: [..., T]; rows: the tasks' gradients [..., T, P], where the method needs them or they are there; gramian: [..., T, T];
        active: bool [..., T]; draw_key: int32 [..., 2].
        """
        method, direction = self.method, None
        if method.needs == "gradients":
            assert rows is not None
            draw = self._draw(draw_key, losses, *rows.shape[-2:])
            direction, weights, memory = method.combine(memory, losses, rows, active, draw)
        else:
            unit = self._unit(losses, gramian, active) if method.needs == "gramian" else torch.ones_like(losses)
            seen = None if gramian is None else gramian * unit[..., :, None] * unit[..., None, :]
            weights, memory = method.weigh(memory, losses, seen, active, self._draw(draw_key, losses, losses.shape[-1], 0))
            weights = (weights * unit).to(losses.dtype)
        if gramian is None and self.normalise == "length":
            return weights, direction, memory  # the caller measures what it makes of them: `scale`
        lengths = None
        if gramian is not None and self.normalise == "length":
            square, one, wide = restrict(gramian, active), active.double(), weights.double()
            plain = length_of(one, square)
            if direction is None:
                update = length_of(wide, square)
                along = ((square @ one[..., None]).squeeze(-1) * wide).sum(-1, keepdim=True)
                least = REMAINDER * (wide * norms(square)).norm(dim=-1, keepdim=True)
            else:
                assert rows is not None
                turned = direction.double()
                update, least = turned.norm(dim=-1, keepdim=True), torch.zeros_like(plain)
                along = (only_active(rows, active[..., None]).double().sum(-2) * turned).sum(-1, keepdim=True)
            lengths = torch.maximum(update, least), plain_part(update, plain, along)
        scale = self.scale(weights, active, lengths).to(losses.dtype)
        return weights * scale, None if direction is None else direction * scale, memory

    def scale(self, weights: Tensor, active: Tensor, lengths: tuple[Tensor, Tensor] | None) -> Tensor:
        """The factor of a method's weights and update, [..., 1]. weights: [..., T]; active: bool [..., T]; lengths: of the method's update
        and what it is to be, [..., 1] each, where normalise=length.
        """
        if self.normalise == "none":
            return torch.ones_like(weights[..., :1])
        length, wanted = weights.abs().sum(-1, keepdim=True), active.sum(-1, keepdim=True)
        if lengths is not None:
            length, wanted = lengths
        return torch.where(length == 0, 1, wanted / torch.where(length == 0, 1, length))

    def weigh_heads(self, plain: Params, weights: Tensor, active: Tensor) -> tuple[Params, Tensor]:
        """The gradients of what belongs to single tasks, and the factors of the tasks' losses for it, [..., T].

        plain: those of the plain sum of the losses, with a row for each task; the last task's own where they have no rows.
        """
        factors = torch.ones_like(weights)
        if self.heads:
            factors = weights
            if self.normalise == "length":
                lengths, wide = _lengths_of_tasks(plain, weights), weights.double()
                update = (wide * lengths).norm(dim=-1, keepdim=True)
                along = (wide * lengths.square()).sum(-1, keepdim=True)
                wanted = plain_part(update, lengths.norm(dim=-1, keepdim=True), along)
                factors = weights * self.scale(weights, active, (update, wanted)).to(weights)
        return {name: value * _factors_for(name, value, factors) for name, value in plain.items()}, factors

    def weighted_update(self, gradient: Callable[[Tensor], Params], weights: Tensor, active: Tensor) -> tuple[Params, Tensor]:
        """The update and the task weights where the tasks' gradients are not compared. gradient: of the weighted sum of the losses, a
        backward pass; normalise=length asks for that of the plain sum too.
        """
        moved = gradient(weights)
        if self.normalise != "length":
            return moved, weights
        plain, lead = gradient(torch.ones_like(weights)), weights.dim() - 1
        update = _dot(moved, moved, lead).sqrt()
        wanted = plain_part(update, _dot(plain, plain, lead).sqrt(), _dot(moved, plain, lead))
        factor = self.scale(weights, active, (update, wanted)).to(weights)
        shaped = {name: factor.view(*factor.shape[:-1], *[1] * (value.dim() - factor.dim() + 1)) for name, value in moved.items()}
        return {name: value * shaped[name] for name, value in moved.items()}, weights * factor

    def _unit(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        """One over what the gradients are divided by, float64 [..., T]; 1 where that is 0."""
        divisor = torch.ones_like(losses, dtype=torch.float64)
        if self.gradient_scale in ("l2", "loss+"):
            assert gramian is not None
            divisor = divisor * norms(restrict(gramian, active))
        if self.gradient_scale in ("loss", "loss+"):
            divisor = divisor * only_active(losses, active).abs()
        return torch.where(divisor > 0, 1 / divisor, 1)

    def _draw(self, key: Tensor, like: Tensor, num_tasks: int, num_coordinates: int) -> Tensor:
        """The balancer's uniform random numbers, [..., *draw_shape]."""
        shape = self.method.draw_shape(num_tasks, num_coordinates)
        place = torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=key.device)
        draw: Tensor = random_uniform(key[..., None, :], place).to(like).unflatten(-1, shape)
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
    """level: auto takes the cheapest that the method and the model allow; heads: None as the method's authors do it; the rest as in
    `Balance`.

    Returns `PlainSum` for equal weights where nothing is compared.

    Raises ValueError where the method or the model cannot work at this level.
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
        why = f"{type(method).__name__} remembers the gradients" if fused else "the tasks do not read the same features"
        raise ValueError(f"balance.level={chosen} cannot be: {why}; use balance.level=parameters")
    reach = method.heads if heads is None else heads
    return Balance(method, chosen, reach, normalise, gradient_scale, conflict)  # type: ignore[arg-type]


def plain_part(update: Tensor, plain: Tensor, along: Tensor) -> Tensor:
    """The length of the plain sum's part along an update, at least LEAST of it. update, plain: their lengths; along: their dot product."""
    both = update * plain
    cosine = torch.where(both == 0, 0, along / torch.where(both == 0, 1, both))
    return plain * cosine.clamp(LEAST, 1)


def _factors_for(name: str, value: Tensor, factors: Tensor) -> Tensor:
    """Those of the tasks that a parameter belongs to, of a shape that broadcasts against it. factors: [..., T]."""
    lead = factors.dim() - 1
    own = factors[..., : value.shape[lead]] if is_head(name) else factors[..., -1]
    return own.to(value.dtype).view(*own.shape, *[1] * (value.dim() - own.dim()))


def _lengths_of_tasks(gradients: Params, like: Tensor) -> Tensor:
    """The length of each task's part of the gradients that `weigh_heads` gets, float64 [..., T]."""
    square, lead = torch.zeros_like(like, dtype=torch.float64), like.dim() - 1
    for name, value in gradients.items():
        if is_head(name):
            square[..., : value.shape[lead]] += value.double().square().unsqueeze(-1).flatten(lead + 1).sum(-1)
        else:
            square[..., -1] += value.double().square().flatten(lead).sum(-1)
    return square.sqrt()


def _dot(left: Params, right: Params, lead: int) -> Tensor:
    """The dot product over all values together, float64 [..., 1]; lead: the number of leading axes."""
    parts = [
        (value.detach().double() * right[name].detach().double()).flatten(lead).sum(-1, keepdim=True)
        for name, value in left.items()
    ]
    return torch.stack(parts).sum(0) if parts else torch.zeros(1, dtype=torch.float64)
