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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtl.balancing.active import only_active
from mtl.balancing.contract import Balancer, Level, State, weighted_sum
from mtl.balancing.gramian import HeadGeometry, compare, gramian_of, length_of, norms, restrict
from mtl.balancing.weighting import Equal
from mtl.federation.objective import Objective, pair_loss
from mtl.losses.pairs import TaskCounts
from mtl.models.cnn import Trunk
from mtl.models.hard_sharing import DETECTOR, HardSharing, is_head
from mtl.seeding import random_uniform
from mtl.types import Params

OWN = "balancer."  # what a balancer remembers stays on the client, among its parameters, under this name
LOSS = "loss."
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

    @property
    def compares(self) -> bool:
        """Whether the tasks' gradients are needed one by one."""
        lengths = self.normalise == "length" and self.level == "representation"  # where they cost nothing
        return self.conflict or lengths or self.method.needs != "losses"

    @property
    def remembers_gradients(self) -> bool:
        return "representation" not in self.method.levels

    def start(self, params: Params, num_tasks: int) -> Params:
        """What a client's balancer remembers before its first step, by names under `balancer.`."""
        like = next(iter(params.values()))
        shape: tuple[int, ...] = (num_tasks,)
        if self.method.needs == "gradients" and self.level == "parameters":
            shape += (sum(params[name].numel() for name in shared(params)),)
        elif self.method.needs == "gradients":
            shape += (1,)  # the size of a batch is not known, and nothing of this shape is remembered
        return {OWN + name: value for name, value in self.method.init(torch.zeros(shape, dtype=like.dtype)).items()}

    def decide(
        self, own: State, losses: Tensor, rows: Tensor | None, gramian: Tensor | None, active: Tensor, draw_key: Tensor
    ) -> tuple[Tensor, Tensor | None, State]:
        """The tasks' weights [..., T], the direction [..., P] where it is not the rows' weighted sum, and what is remembered.

        losses: [..., T]; rows: the tasks' gradients [..., T, P], where the method needs them or they are there; gramian: [..., T, T];
        active: bool [..., T]; draw_key: int32 [..., 2].
        """
        method, direction = self.method, None
        if method.needs == "gradients":
            assert rows is not None
            draw = self._draw(draw_key, losses, *rows.shape[-2:])
            direction, weights, own = method.combine(own, losses, rows, active, draw)
        else:
            unit = self._unit(losses, gramian, active) if method.needs == "gramian" else torch.ones_like(losses)
            seen = None if gramian is None else gramian * unit[..., :, None] * unit[..., None, :]
            weights, own = method.weigh(own, losses, seen, active, self._draw(draw_key, losses, losses.shape[-1], 0))
            weights = (weights * unit).to(losses.dtype)
        if gramian is None and self.normalise == "length":
            return weights, direction, own  # the caller measures what it makes of them: `scale`
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
        return weights * scale, None if direction is None else direction * scale, own

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
    model: HardSharing,
    *,
    level: str = "auto",
    heads: bool | None = None,
    normalise: str = "none",
    gradient_scale: str = "none",
    conflict: bool = False,
) -> Balance | None:
    """level: auto takes the cheapest that the method and the model allow; heads: None as the method's authors do it; the rest as in
    `Balance`.

    Returns None for a plain sum. Raises ValueError where the method or the model cannot work at this level.
    """
    if isinstance(method, Equal) and not conflict:
        return None
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


@dataclass(frozen=True)
class Batch:
    """inputs: [..., B, c, H, W]; targets, mask: bool [..., B, T]; valid: bool [..., B]; keys: int32 [..., L, 2], of the dropout layers;
    draw_key: int32 [..., 2]; positives, negatives: [..., T] and progress: [...], see `TaskCounts`.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    valid: Tensor
    keys: Tensor
    draw_key: Tensor
    positives: Tensor
    negatives: Tensor
    progress: Tensor

    @property
    def active(self) -> Tensor:
        """Bool [..., T], the tasks with a known label in the batch."""
        return (self.mask & self.valid[..., None]).any(-2)


@dataclass(frozen=True)
class Gradients:
    """grads: by the names of the parameters; sums: [..., 2, T], positive and negative losses summed over the images;
    own: what the balancer remembers; pairs: [..., 3, T, T], see `compare`, or None.
    """

    grads: Params
    sums: Tensor
    own: State
    pairs: Tensor | None


class BalancedStep:
    """stacked: whether parameters and batches have a first axis of clients; without it, they are those of `model` itself."""

    def __init__(self, balance: Balance, model: HardSharing, objective: Objective, *, stacked: bool) -> None:
        self.balance, self.stacked = balance, stacked
        self._parts = _Parts(model, objective)

    def gradients(self, params: Params, own: State, batch: Batch, resting: Params | None = None) -> Gradients:
        """params: as the step's algorithm knows them; resting: those of a stack that are not trained now. Returns what takes the place of
        the gradient of a plain sum.
        """
        balance = self.balance
        apart = balance.compares and balance.level == "representation"
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()} if self.stacked else params
            named = leaves | (resting or {})
            if apart:
                features = self._call("represent", named, batch, batch.inputs)
                logits = self._call("logits", named, batch, features.detach())
                directions = self._call("directions", named, batch).detach()
                geometry = HeadGeometry(_wide(directions), _wide(features.detach()), self._parts.cosine)
            else:
                logits = self._call("forward_all", named, batch, batch.inputs)
            cut = _wide(logits.detach()).requires_grad_()
            both = self._losses(named, cut, batch)
            losses, active = both.sum(-2), batch.active
            (errors,) = torch.autograd.grad(losses.sum(), cut, retain_graph=True)
        trunk = {name: leaves[name] for name in shared(leaves)}

        rows = gramian = None
        if apart:
            gramian = geometry.gramian(errors)
            rows = geometry.rows(errors) if balance.method.needs == "gradients" else None
        elif balance.compares:
            rows = self._exact(logits, trunk, errors, active)
            gramian = gramian_of(rows)
        weights, direction, own = balance.decide(own, losses.detach(), rows, gramian, active, batch.draw_key)

        def summed(weights: Tensor) -> Params:
            return _grad(logits, trunk, (errors * weights[..., None, :]).to(logits.dtype), keep=True)

        if apart:
            pull = geometry.pull_back(errors * weights[..., None, :])
            to_features = pull if direction is None else direction.unflatten(-1, features.shape[-2:])
            moved = _grad(features, trunk, to_features.to(features.dtype))
        elif rows is not None:
            moved = _split(weighted_sum(weights, rows) if direction is None else direction, trunk)
        else:
            moved, weights = balance.weighted_update(summed, weights, active)
        heads = {name: value for name, value in leaves.items() if is_head(name)}
        of_heads, factors = balance.weigh_heads(_grad(logits, heads, errors.to(logits.dtype)), weights, active)
        learned = {name: value for name, value in leaves.items() if name.startswith(LOSS)}
        moved |= of_heads | _grad(losses, learned, factors)

        sums = both.detach() if self._parts.objective.reduction == "sum" else both.detach() * batch.valid.sum(-1)[..., None, None]
        pairs = compare(gramian, active).to(losses.dtype) if balance.conflict and gramian is not None else None
        return Gradients({name: moved[name] for name in params}, sums, own, pairs)

    @torch.no_grad()
    def observe(self, params: Params, own: State, batch: Batch) -> State:
        """What the balancer remembers once the step is taken. params: those after it."""
        if not self.balance.method.observes:
            return own
        logits = _wide(self._call("forward_all", params, batch, batch.inputs))
        return self.balance.method.observe(own, self._losses(params, logits, batch).sum(-2), batch.active)

    def _losses(self, params: Params, logits: Tensor, batch: Batch) -> Tensor:
        """[..., 2, T], the positive and the negative loss of every task."""
        counts = (batch.positives, batch.negatives, batch.progress)
        return self._call("losses", params, batch, logits, batch.targets, batch.mask, batch.valid, *counts)

    def _exact(self, logits: Tensor, trunk: Params, errors: Tensor, active: Tensor) -> Tensor:
        """Every task's gradient of the trunk, [..., T, P], by a backward pass for each task that some client has."""
        num_tasks, lead = errors.shape[-1], errors.dim() - 2
        sizes = [value[(0,) * lead].numel() for value in trunk.values()]
        rows = errors.new_zeros(*errors.shape[:lead], num_tasks, sum(sizes))
        places = dict(zip(trunk, rows.split(sizes, -1), strict=True)) if trunk else {}
        whom: Iterable[int] = range(num_tasks)
        if active.device.type == "cpu":
            whom = active.reshape(-1, num_tasks).any(0).nonzero().flatten().tolist()
        for task in whom:
            pull = torch.zeros_like(errors)
            pull[..., task] = errors[..., task]
            for name, grad in _grad(logits, trunk, pull.to(logits.dtype), keep=True).items():
                places[name][..., task, :] = grad.flatten(lead)
        return rows

    def _call(self, what: str, params: Params, batch: Batch, *given: Tensor) -> Tensor:
        if not self.stacked:
            result: Tensor = self._parts(what, *given)
            return result

        def one(params: Params, keys: Tensor, valid: Tensor, *given: Tensor) -> Tensor:
            named = params | self._parts.model.step_buffers(keys, valid)
            result: Tensor = functional_call(self._parts, {f"model.{n}": v for n, v in named.items()}, (what, *given))
            return result

        many: Tensor = vmap(one)(params, batch.keys, batch.valid, *given)
        return many


@dataclass(frozen=True)
class Losses:
    """tasks: [T]; active: bool [T]; sums: [2, ...], positive and negative losses summed over the images, for logging."""

    tasks: Tensor
    active: Tensor
    sums: Tensor


class BalancedLosses:
    """`BalancedStep` for one model and tasks that need not read the same images. losses: of a batch, at the model's parameters as they
    are. The gradients of the trunk are exact.
    """

    def __init__(self, balance: Balance, losses: Callable[[Any], Losses]) -> None:
        self.balance, self.losses = balance, losses

    def gradients(self, params: Params, own: State, batch: Any) -> Gradients:
        """params: those of the model that train; batch: it has a `draw_key`, int32 [2]."""
        balance = self.balance
        found = self.losses(batch)
        losses = _wide(found.tasks)
        trunk = {name: params[name] for name in shared(params)}
        rows = gramian = None
        if balance.compares:
            each = [_grad(loss, trunk, torch.ones_like(loss), keep=True) for loss in losses]
            rows = torch.stack([torch.cat([losses.new_zeros(0), *(grad.flatten() for grad in grads.values())]) for grads in each])
            gramian = gramian_of(rows)
        weights, direction, own = balance.decide(own, losses.detach(), rows, gramian, found.active, batch.draw_key)
        if rows is None:
            moved, weights = balance.weighted_update(
                lambda weights: _grad(losses, trunk, weights, keep=True), weights, found.active
            )
        else:
            moved = _split(weighted_sum(weights, rows) if direction is None else direction, trunk)
        rest = {name: value for name, value in params.items() if name not in trunk and not name.startswith(LOSS)}
        learned = {name: value for name, value in params.items() if name.startswith(LOSS)}
        plain = _grad(losses, rest, torch.ones_like(losses), keep=True)
        of_heads, factors = balance.weigh_heads(plain, weights, found.active)
        moved |= of_heads | _grad(losses, learned, factors)
        pairs = compare(gramian, found.active).to(losses.dtype) if balance.conflict and gramian is not None else None
        return Gradients({name: moved[name] for name in params}, found.sums, own, pairs)

    @torch.no_grad()
    def observe(self, params: Params, own: State, batch: Any) -> State:
        """As `BalancedStep.observe`."""
        if not self.balance.method.observes:
            return own
        found = self.losses(batch)
        return self.balance.method.observe(own, _wide(found.tasks), found.active)


class _Parts(nn.Module):
    """The stages of a step as calls of one module, so that its parameters can be swapped for a call."""

    def __init__(self, model: HardSharing, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, what: str, *given: Any) -> Any:
        return getattr(self, what)(*given)

    @property
    def cosine(self) -> bool:
        return bool(getattr(self.model.heads, "cosine", False))

    def forward_all(self, inputs: Tensor) -> Any:
        return self.model(inputs)

    def represent(self, inputs: Tensor) -> Any:
        return self.model.trunk(inputs)

    def logits(self, features: Tensor) -> Any:
        return self.model.heads(features)

    def directions(self) -> Any:
        return self.model.heads.directions()  # type: ignore[operator]

    def losses(self, logits: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, *counts: Tensor) -> Tensor:
        terms = pair_loss(self.model).terms(logits, TaskCounts(*counts))
        losses = self.objective.reduce(terms, targets, mask, valid)
        return torch.stack([losses.positive, losses.negative])


def shared(params: Params) -> list[str]:
    """The names of the parameters that the tasks share and whose gradients they may disagree on."""
    return [name for name in params if not is_head(name) and not name.startswith((LOSS, OWN, DETECTOR))]


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


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: losses and solvers do not work in what autocast computes with."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _grad(outputs: Tensor, inputs: Params, pull: Tensor, *, keep: bool = False) -> Params:
    if not inputs:
        return {}
    grads = torch.autograd.grad(outputs, list(inputs.values()), pull, retain_graph=keep, materialize_grads=True)
    return dict(zip(inputs, grads, strict=True))


def _split(direction: Tensor, like: Params) -> Params:
    """direction: [..., P]; returns its parts in the shapes of the parameters."""
    lead = direction.dim() - 1
    sizes = [value[(0,) * lead].numel() for value in like.values()]
    parts = direction.split(sizes, -1)
    return {name: part.reshape(value.shape).to(value.dtype) for (name, value), part in zip(like.items(), parts, strict=True)}
