"""Pruning of weights (Han et al., NeurIPS 2015) or channels (Li et al., ICLR 2017) by magnitude; the heads are not pruned.

    weights    the smallest |w| become zero, gradually (Zhu & Gupta 2017):  s(r) = ratio (1 - (1 - (r - begin) / (end - begin))^3)
    channels   the channels of least norm are cut out, once, with everything that depends on them (Fang et al., CVPR 2023)

Zeros save neither time nor memory in a dense file; channels save both.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtl.base.types import Params
from mtl.edge.extras import require
from mtl.models.cnn import FlattenPlaces, ImageShape, Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import FrozenBatchNorm, LocalBatchNorm

Kind = Literal["nothing", "weights", "channels"]
Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Pruning:
    """Which weights or channels are removed, and how many.

    Args:
        kind: nothing, weights or channels
        ratio: the share that is removed
        scope: whether the smallest of all layers go (global) or those of each (layer)
        begin: share of the training after which weights begin to go
        end: share of the training after which the whole ratio of weights is gone
    """

    kind: str = "nothing"
    ratio: float = 0.5
    scope: str = "layer"
    begin: float = 0.0
    end: float = 0.5

    def __post_init__(self) -> None:
        for name, kind in (("kind", Kind), ("scope", Scope)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"prune.{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)}")
        if not 0 < self.ratio < 1:
            raise ValueError(f"prune.ratio must be in (0, 1), got {self.ratio}")
        if not 0 <= self.begin <= self.end <= 1:
            raise ValueError(f"prune.begin and prune.end must be in order in [0, 1], got {self.begin} and {self.end}")

    def ratio_at(self, progress: float) -> float:
        """Return the share of weights that are zero at this share of the training, 0 to 1."""
        if progress < self.begin:
            return 0.0
        if progress >= self.end:
            return self.ratio
        return self.ratio * (1 - (1 - (progress - self.begin) / (self.end - self.begin)) ** 3)


def prunable(model: MultiTaskModel) -> Params:
    """Return the weights of the trunk's convolutions and linear layers, by name.

    Raises:
        ValueError: no weight of the trunk is trained.
    """
    weights: Params = {f"trunk.{name}": value for name, value in model.trunk.named_parameters() if value.ndim > 1}
    if not weights:
        raise ValueError("prune.kind=weights needs a trunk with trained weights, got one without")
    return weights


@torch.no_grad()
def zero_smallest(weights: Params, ratio: float, *, scope: str) -> Params:
    """Set the smallest weights to zero, in place, and return bool masks of those that stay.

    Args:
        weights: the weights, by name.
        ratio: share of the weights that become zero.
        scope: `global` or `layer`, see `Pruning`.

    Raises:
        ValueError: a layer would have no weights left; then nothing is changed.
    """
    masks = {}
    if scope == "global":
        flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
        chosen = _largest(flat, ratio).split([weight.numel() for weight in weights.values()])
        masks = {name: mask.view_as(weights[name]) for name, mask in zip(weights, chosen, strict=True)}
    else:
        masks = {name: _largest(weight.abs().flatten(), ratio).view_as(weight) for name, weight in weights.items()}
    for name, mask in masks.items():
        if not bool(mask.any()):
            raise ValueError(
                f"prune.ratio={ratio:g} would leave nothing of {name}, {tuple(mask.shape)}; take a lower one or scope=layer"
            )
    for name, weight in weights.items():
        weight.mul_(masks[name])
    return masks


def _largest(magnitudes: Tensor, ratio: float) -> Tensor:
    """Return a mask that is false for exactly the smallest share `ratio`, even where magnitudes are equal."""
    mask = torch.ones_like(magnitudes, dtype=torch.bool)
    mask[magnitudes.argsort(stable=True)[: round(ratio * magnitudes.numel())]] = False
    return mask


def cut_channels(model: MultiTaskModel, image_shape: ImageShape, ratio: float, *, scope: str) -> None:
    """Remove the channels of smallest norm from the model's trunk, with everything that depends on them, in place.

    The embedding keeps its width. A GroupNorm keeps its number of groups: each group loses equally many channels.

    Args:
        model: a model with one trunk.
        image_shape: (c, height, width) of the images.
        ratio: share of the channels that are removed.
        scope: `global` or `layer`, see `Pruning`.

    Raises:
        ValueError: a layer would be empty, no channel can be cut, or the channels of a layer cannot be traced; then nothing is changed.
    """
    if not isinstance(model.trunk, Trunk):
        raise ValueError(f"prune.kind=channels needs a model with one trunk, got {type(model.trunk).__name__}")
    tp = require("torch_pruning", "torch-pruning")
    trunk = copy.deepcopy(model.trunk)
    names = {layer: f"trunk.{name}" for name, layer in trunk.named_modules()}
    probe = nn.Linear(trunk.width, 1)
    images = torch.zeros(1, *image_shape, dtype=next(trunk.parameters(), torch.empty(0)).dtype)
    places = [path for path, layer in trunk.chain() if isinstance(layer, FlattenPlaces)]
    for path in places:
        flatten_by(nn.Flatten(), trunk, path, images)
    try:
        pruner = tp.pruner.BasePruner(
            nn.Sequential(trunk, probe),
            images,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            global_pruning=scope == "global",
            ignored_layers=[probe],
            customized_pruners={FrozenBatchNorm: norm_pruner(tp), LocalBatchNorm: norm_pruner(tp)},
            round_to=None,
        )
        if scope == "layer":
            for group in pruner.DG.get_all_groups(ignored_layers=[probe], root_module_types=[nn.Conv2d, nn.Linear]):
                _check_group([dependency.target.module for dependency, _ in group], names, probe, ratio)
        for group in pruner.step(interactive=True):
            if all(dependency.target.module is not probe for dependency, _ in group):
                group.prune()
        for path in places:
            flatten_by(FlattenPlaces(), trunk, path, images)
        with torch.no_grad():
            trunk(images)
    except (ZeroDivisionError, AssertionError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"prune.kind=channels cannot trace the channels of {type(model.trunk).__name__}: {type(error).__name__}: {error}; "
            "use prune.kind=weights"
        ) from error
    before, after = (sum(parameter.numel() for parameter in part.parameters()) for part in (model.trunk, trunk))
    if after >= before:
        raise ValueError(f"prune.ratio={ratio:g} cuts no channel of this trunk; take a higher one")
    model.trunk = trunk.train(model.trunk.training)  # torch-pruning leaves it in evaluation mode


def _check_group(layers: list[nn.Module], names: dict[nn.Module, str], probe: nn.Module, ratio: float) -> None:
    """Raise ValueError where a group of layers that lose the same channels would be empty; torch-pruning would skip it silently.

    The first of `layers` is the one whose outputs these channels are.
    """
    root = layers[0]
    assert isinstance(root, nn.Conv2d | nn.Linear)
    channels = root.weight.shape[0]
    groups = max((layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)), default=1)
    if probe not in layers and int(channels // groups * (1 - ratio)) < 1:
        shared = f" in {groups} groups" if groups > 1 else ""
        raise ValueError(
            f"prune.ratio={ratio:g} would leave no channel of {names[root]}, which has {channels}{shared}; take a lower one or scope=global"
        )


def norm_pruner(tp: Any) -> Any:
    """Return torch-pruning's rule for cutting channels out of a norm that is not BatchNorm."""

    class NormPruner(tp.BasePruningFunc):
        def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
            remaining = [channel for channel in range(self.get_out_channels(layer)) if channel not in set(idxs)]
            for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                if value.ndim:
                    cut = value.detach()[remaining].clone()
                    setattr(layer, name, nn.Parameter(cut) if isinstance(value, nn.Parameter) else cut)
            return layer

        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer: nn.Module) -> int:
            return max(len(value) for value in [*layer.parameters(), *layer.buffers()] if value.ndim)

        get_in_channels = get_out_channels

    return NormPruner()


@torch.no_grad()
def flatten_by(flatten: nn.Flatten, trunk: Trunk, path: str, images: Tensor) -> None:
    """Replace the flatten layer at `path`, and reorder the columns of the next linear layer, so that the trunk computes the same.

    torch-pruning needs it: it assumes that the values of a channel are adjacent.

    Args:
        flatten: the new layer.
        trunk: the trunk, changed in place.
        path: name of the flatten layer.
        images: [1, c, H, W], an example.
    """
    chain = trunk.chain()
    place = next(i for i, (name, _) in enumerate(chain) if name == path)
    before = images
    for _, layer in chain[:place]:
        before = layer(before)
    linear = next(layer for _, layer in chain[place:] if isinstance(layer, nn.Linear))
    sizes = before.shape[1], before[0, 0].numel()
    linear.weight.copy_(linear.weight.unflatten(1, sizes if isinstance(flatten, FlattenPlaces) else sizes[::-1]).mT.flatten(1))
    parent, _, name = path.rpartition(".")
    setattr(trunk.get_submodule(parent), name, flatten)


def take_shapes(model: nn.Module, state: Params) -> None:
    """Give the layers of `model` the sizes of the tensors in `state`, whose channels have been cut; the values are not copied.

    Raises:
        ValueError: a layer has another size and is of a type that cannot be cut.
    """
    for path, layer in model.named_modules():
        changed = False
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            saved = state.get(f"{path}.{name}")
            if saved is None or saved.shape == value.shape or saved.ndim != value.ndim:
                continue
            empty = torch.empty_like(saved)
            setattr(layer, name, nn.Parameter(empty) if isinstance(value, nn.Parameter) else empty)
            changed = True
        if changed:
            _take_sizes(path, layer)


def _take_sizes(path: str, layer: nn.Module) -> None:
    """Set a layer's size attributes from its weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    match layer:
        case nn.Conv2d():
            layer.out_channels = weight.shape[0]
            if layer.groups == layer.in_channels > 1:
                layer.groups = layer.in_channels = weight.shape[0]
            layer.in_channels = weight.shape[1] * layer.groups
        case nn.Linear():
            layer.out_features, layer.in_features = weight.shape
        case nn.GroupNorm():
            layer.num_channels = len(weight)
        case nn.LayerNorm():
            layer.normalized_shape = tuple(weight.shape)
        case FrozenBatchNorm() | LocalBatchNorm():
            pass
        case _:
            raise ValueError(f"{path} ({type(layer).__name__}) is not a layer whose channels can be cut")
