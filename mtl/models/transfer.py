"""Transfer: which stages of a trunk that others trained (the source trunk) train, from which round, how fast, and what is preserved.

A trunk is a chain of layers; a *stage* is a layer with a matrix of weights, or a block of such, and what follows it up to the next.

    parameters   all stages train. Stage d of D from the input has the learning rate times decay^(D - 1 - d) (discriminative rates), and
                 with gradual unfreezing the heads begin alone and one more stage joins from the top every few rounds
                 (both Howard & Ruder, ACL 2018, "Universal Language Model Fine-tuning")
    features     all stages but the last few are constants, so that they are neither trained nor sent. Their outputs for the images may be
                 computed once and replace the images
    relations    the trained trunk is to preserve the mutual distances and angles that the source trunk gives the images of a batch
                 (RKD, Park et al., CVPR 2019; see `edge.distil`). Source and target may have other subtasks
    instances    clients also train on images that the source trunk was trained on, or others with labels, sampling those most similar to
                 their own more often (see `data.instances`)
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

    Args:
        trained: stages at the end of the trunk that are trained, null for all, 0 for the heads alone.
        decay: factor of the learning rate from stage to stage towards the input, in (0, 1].
        unfreeze_every: rounds after which one more stage begins to train, null trains all from the start.
        cache: compute the outputs of the frozen stages once, which needs augmentation=none and mirror=false.
        distance: weight of the loss that preserves the distances between images.
        angle: weight of the loss that preserves the angles between images.
        source: a run directory, whose training images and subtasks are trained too, null for none.
        ratio: images of the source that a client draws for each of its images.
        disjoint: no person of the source is in the target, so that the images of each are negatives of the other's subtasks.
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
        """Whether distances or angles of the source trunk are preserved."""
        return bool(self.distance or self.angle)

    def freeze(self, model: MultiTaskModel) -> int:
        """Make constants of the stages that are never trained, and return how many layers of the trunk these are.

        Dropout is left out in them.

        Raises:
            ValueError: where that leaves nothing to train, or where a frozen layer normalises by the statistics of the batch.
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
        """Factors of the learning rate, by the names of the parameters of the trunk that have one other than 1."""
        if self.decay == 1:
            return {}
        from_top = enumerate(reversed(stages(_trunk_of(model))))
        return {f"trunk.{name}": self.decay**above for above, stage in from_top for name in _names(stage)}

    def schedule(self, model: MultiTaskModel) -> "Unfreezing":
        """Which parameters are frozen in a round."""
        if self.unfreeze_every is None:
            return Unfreezing(None, ())
        names = tuple(frozenset(f"trunk.{name}" for name in _names(stage)) for stage in stages(_trunk_of(model)))
        return Unfreezing(self.unfreeze_every, names)


@dataclass(frozen=True)
class Unfreezing:
    """Gradual unfreezing: the heads train first, and one more stage joins from the top every few rounds.

    Attributes:
        every: rounds, None for no freezing.
        stages: the names of the parameters of each, from the input.
    """

    every: int | None
    stages: tuple[Frozen, ...]

    def __call__(self, round: int) -> Frozen:
        """The parameters that are frozen in a round, counted from 0."""
        resting = 0 if self.every is None else max(len(self.stages) - round // self.every, 0)
        return frozenset().union(*self.stages[:resting])


@torch.no_grad()
def frozen_features(trunk: Trunk, count: int, inputs: Tensor) -> Tensor:
    """The outputs of the first `count` layers as images again; features [B, h] become [B, h, 1, 1].

    Args:
        trunk: the trunk.
        count: number of layers.
        inputs: prepared images [B, c, H, W].
    """
    was_training = trunk.training
    trunk.eval()
    for _, layer in trunk.chain()[:count]:
        inputs = layer(inputs)
    trunk.train(was_training)
    return inputs if inputs.dim() == 4 else inputs[:, :, None, None]


def stages(trunk: Trunk) -> list[list[tuple[str, nn.Module]]]:
    """The layers of each stage, from the input. A frozen stage is still one."""
    result: list[list[tuple[str, nn.Module]]] = []
    before: list[tuple[str, nn.Module]] = []
    for path, layer in trunk.chain():
        if any(value.dim() > 1 for value in layer.state_dict().values()):
            result.append([*before, (path, layer)])
            before = []
        elif result:
            result[-1].append((path, layer))
        else:
            before.append((path, layer))
    return result


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
