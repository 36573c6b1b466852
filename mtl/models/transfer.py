"""Transfer: what of a trunk that others trained, the source trunk, is trained on, from which round, and how fast; and what else is kept.

A trunk is a chain of layers; a *stage* is a layer with a matrix of weights, or a block of such, and what follows it up to the next.

    parameters   all stages train. Stage d of D from the input has the learning rate times decay^(D - 1 - d) (discriminative rates), and
                 with gradual unfreezing the heads begin alone and one more stage joins from the top every few rounds
                 (both Howard & Ruder, ACL 2018, "Universal Language Model Fine-tuning")
    features     all stages but the last few are constants, so that they are neither trained nor sent. What they make of the images may be
                 computed once and kept in the images' place
    relations    the source trunk stays beside the trained one, and what the latter makes of the images of a batch is to keep their mutual
                 distances and angles (RKD, Park et al., CVPR 2019; see `edge.distil`). Source and target may have other subtasks
    instances    images that the source trunk was trained on, or others with labels, are trained along, those most that are likest to
                 the client's own (see `data.instances`)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl.models.cnn import Trunk
from mtl.models.dropout import KeyedDropout
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import LocalBatchNorm

Frozen = frozenset[str]


@dataclass(frozen=True)
class Transfer:
    """How a trunk that others trained is trained on.

    trained: stages at the end of the trunk that are trained, null for all, 0 for the heads alone; decay: factor of the learning rate from
    stage to stage towards the input, in (0, 1]; unfreeze_every: rounds after which one more stage begins to train, null trains all from
    the start; cache: compute what the frozen stages make of the images once, which needs augmentation=none and mirror=false; distance:
    weight of the distances between images that are kept; angle: weight of the angles between images that are kept; source: a run
    directory, whose training images and subtasks are trained along, null for none; ratio: images of the source that a client draws for
    each of its own; disjoint: nobody of the source is of the target, so that the images of each are negatives of the other's subtasks.
    """

    trained: int | None = None
    decay: float = 1.0
    unfreeze_every: int | None = None
    cache: bool = False
    distance: float = 0.0
    angle: float = 0.0
    source: str | None = None
    ratio: float = 1.0
    disjoint: bool = False

    def __post_init__(self) -> None:
        if self.trained is not None and self.trained < 0:
            raise ValueError(f"transfer.trained must be null or >= 0, got {self.trained}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"transfer.decay must be in (0, 1], got {self.decay}")
        if self.unfreeze_every is not None and self.unfreeze_every < 1:
            raise ValueError(f"transfer.unfreeze_every must be null or >= 1, got {self.unfreeze_every}")
        if self.cache and self.trained is None:
            raise ValueError("transfer.cache=true needs transfer.trained, the number of stages that are trained, got null")
        for name in ("distance", "angle"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"transfer.{name} must be >= 0, got {getattr(self, name)}")
        if self.relations and self.trained == 0:
            raise ValueError(
                "transfer.distance and transfer.angle keep the relations of what is trained: transfer.trained must not be 0"
            )
        if not self.ratio > 0:
            raise ValueError(f"transfer.ratio must be > 0, got {self.ratio}")

    @property
    def relations(self) -> bool:
        """Whether the source trunk's are kept."""
        return bool(self.distance or self.angle)

    def freeze(self, model: MultiTaskModel) -> int:
        """Make constants of the stages that are never trained; returns how many layers of the trunk that are. Dropout is left out in
        them. Raises ValueError where that leaves nothing to train, or where a frozen layer has statistics of the batch at hand.
        """
        if self.trained is None and self.unfreeze_every is None:
            return 0
        trunk = _trunk_of(model)
        depth = stages(trunk)
        if self.trained is not None and self.trained > len(depth):
            raise ValueError(f"transfer.trained must be at most {len(depth)}, the stages of the trunk, got {self.trained}")
        if self.unfreeze_every is not None and next(model.heads.parameters(), None) is None:
            raise ValueError("transfer.unfreeze_every begins with the heads alone, and these have no parameters")
        count = 0 if self.trained is None else sum(map(len, depth[: len(depth) - self.trained]))
        for path, layer in trunk.chain()[:count]:
            _make_constant(path, layer)
        if next(model.parameters(), None) is None:
            raise ValueError(
                f"transfer.trained={self.trained} leaves nothing to train, as neither heads nor loss have parameters"
            )
        return count

    def scales(self, model: MultiTaskModel) -> dict[str, float]:
        """The learning rate of each parameter of the trunk that has another than the others, as a factor of it."""
        if self.decay == 1:
            return {}
        from_top = enumerate(reversed(stages(_trunk_of(model))))
        return {f"trunk.{name}": self.decay**above for above, stage in from_top for name in _names(stage)}

    def schedule(self, model: MultiTaskModel) -> "Unfreezing":
        """Which parameters rest in a round."""
        if self.unfreeze_every is None:
            return Unfreezing(None, ())
        names = tuple(frozenset(f"trunk.{name}" for name in _names(stage)) for stage in stages(_trunk_of(model)))
        return Unfreezing(self.unfreeze_every, names)


@dataclass(frozen=True)
class Unfreezing:
    """every: rounds, None for no freezing; stages: the names of the parameters of each, from the input."""

    every: int | None
    stages: tuple[Frozen, ...]

    def __call__(self, round: int) -> Frozen:
        """The parameters that rest in a round, counted from 0."""
        resting = 0 if self.every is None else max(len(self.stages) - round // self.every, 0)
        return frozenset().union(*self.stages[:resting])


@torch.no_grad()
def frozen_features(trunk: Trunk, count: int, inputs: Tensor) -> Tensor:
    """What the first `count` layers make of prepared images [B, c, H, W], as images again; features [B, h] become [B, h, 1, 1]."""
    was_training = trunk.training
    trunk.eval()
    for _, layer in trunk.chain()[:count]:
        inputs = layer(inputs)
    trunk.train(was_training)
    return inputs if inputs.dim() == 4 else inputs[:, :, None, None]


def stages(trunk: Trunk) -> list[list[tuple[str, nn.Module]]]:
    """The layers of each stage, from the input. A frozen stage is still one."""
    found: list[list[tuple[str, nn.Module]]] = []
    before: list[tuple[str, nn.Module]] = []
    for path, layer in trunk.chain():
        if any(value.dim() > 1 for value in layer.state_dict().values()):
            found.append([*before, (path, layer)])
            before = []
        elif found:
            found[-1].append((path, layer))
        else:
            before.append((path, layer))
    return found


def _names(stage: list[tuple[str, nn.Module]]) -> list[str]:
    return [f"{path}.{name}" for path, layer in stage for name, _ in layer.named_parameters()]


def _make_constant(path: str, layer: nn.Module) -> None:
    for inner in layer.modules():
        if isinstance(inner, LocalBatchNorm):
            raise ValueError(f"norm=local has no statistics to freeze in trunk.{path}; use norm=frozen or norm=group")
        if isinstance(inner, KeyedDropout):
            inner.p = 0.0
        for name, parameter in list(inner._parameters.items()):
            if parameter is not None:
                delattr(inner, name)
                inner.register_buffer(name, parameter.detach())


def _trunk_of(model: MultiTaskModel) -> Trunk:
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, Trunk):
        raise ValueError(f"transfer needs a model with one trunk, a chain of layers, got {type(model).__name__}")
    return trunk
