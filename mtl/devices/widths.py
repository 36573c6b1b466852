"""Narrower models that are parts of one model (HeteroFL, Diao, Ding & Tarokh, ICLR 2021).

At level r every hidden layer of the trunk has its first ceil(r c) of c channels, with the weights that read the first channels of the layer
before. The features keep their width, so that all levels share the heads. So do layers whose channels are tied to the features, by a
residual connection or because the features are their mean. Of a GroupNorm whole groups are cut: a channel is normalised with the same other
channels at every level. Narrower levels are therefore contained in wider ones.

A layer that has a share s of its inputs divides its sums by s, as dropout does, so that they have the scale of the whole model. The paper's
scaler divides the outputs of the layer before instead. In a chain of convolutions and ReLUs this is the same, but a norm between the two
would cancel it.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl.edge.extras import require
from mtl.edge.prune import flatten_by, norm_pruner
from mtl.models.cnn import FlattenPlaces, ImageShape, Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import FrozenBatchNorm, LocalBatchNorm


@dataclass(frozen=True)
class Widths:
    """How many of the channels of every hidden layer clients train.

    Args:
        levels: shares of the channels that a client can have, from 1 downwards
        shares: how many clients, or which share of them, have each level, null where `fleet.memory=shrink` gives each the widest that
            fits into its memory
        scale: whether sums over fewer channels are scaled up
    """

    levels: Sequence[float] = (1.0,)
    shares: Sequence[float] | None = None
    scale: bool = True

    def __post_init__(self) -> None:
        levels, shares = list(self.levels), self.shares
        falling = all(before > after for before, after in itertools.pairwise(levels))
        if not levels or levels[0] != 1 or not falling or not levels[-1] > 0:
            raise ValueError(f"widths.levels must fall from 1 to a number > 0, got {levels}")
        if shares is not None and (len(shares) != len(levels) or not all(0 <= share < math.inf for share in shares)):
            raise ValueError(
                f"widths.shares must be {len(levels)} numbers >= 0, one for each of widths.levels, got {list(shares)}"
            )


@dataclass(frozen=True)
class Level:
    """A part of the whole model that clients train.

    Attributes:
        ratio: share of the whole model's width.
        model: the model at this width.
        index: for each parameter that is smaller than in the whole model, the positions of its coordinates in the flattened whole
            parameter, int64 of the parameter's shape.
        trunk: name of the trunk, where the whole model has several (`models.peers`).
    """

    ratio: float
    model: MultiTaskModel
    index: dict[str, Tensor]
    trunk: str | None = None

    @property
    def name(self) -> str:
        """Name of the level in metrics."""
        return f"width_{self.ratio:g}" if self.trunk is None else f"trunk_{self.trunk}"


class Scale:
    """A forward hook that multiplies a layer's sums over its inputs by `factor`."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Return the scaled output; the bias is not scaled."""
        # Scaled inputs would have to be stored for the backward pass.
        scaled = out * self.factor
        if layer.bias is None:
            return scaled
        return scaled + (layer.bias * (1 - self.factor)).view(-1, *[1] * (out.ndim - 2))


def narrow(model: MultiTaskModel, image_shape: ImageShape, ratio: float, *, scale: bool = True) -> Level:
    """Return `model` at a smaller width, with the values of the whole model, which is not changed.

    Args:
        model: the whole model.
        image_shape: (c, height, width) of the images.
        ratio: share of the channels that stay.
        scale: whether sums over fewer channels are scaled up.

    Raises:
        ValueError: the model does not have a single trunk, its channels cannot be traced, or no channel can be cut.
    """
    if ratio == 1:
        return Level(ratio, model, {})
    if not isinstance(model.trunk, Trunk):
        raise ValueError(
            f"widths.levels below 1 need architecture=hard_sharing, a model with one trunk, got {type(model.trunk).__name__}"
        )
    # Each weight is set to its position, so that after the cut the values tell which weights are left.
    trunk = copy.deepcopy(model.trunk).double()
    places = {name: value for name, value in trunk.state_dict(keep_vars=True).items() if value.ndim and value.is_floating_point()}
    with torch.no_grad():
        for value in places.values():
            value.copy_(torch.arange(value.numel(), dtype=value.dtype).view_as(value))
    fans = {layer: layer.weight[0].numel() for layer in trunk.modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    _keep_leading(trunk, image_shape, ratio)
    small = copy.deepcopy(model)
    small.trunk = trunk.train(model.trunk.training)
    whole, index = model.trunk.state_dict(), {}
    for path, layer in trunk.named_modules():
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            full = f"{path}.{name}"
            if full not in places:
                continue
            place = value.detach().long()
            values = whole[full].flatten()[place]
            setattr(layer, name, nn.Parameter(values) if isinstance(value, nn.Parameter) else values)
            if isinstance(value, nn.Parameter) and value.shape != whole[full].shape:
                index[f"trunk.{full}"] = place
    if not index:
        raise ValueError(f"widths.levels={ratio:g} cuts no channel of this trunk; take a lower one")
    for layer, before in fans.items():
        after = layer.weight[0].numel()
        if scale and after < before:
            layer.register_forward_hook(Scale(before / after))
    return Level(ratio, small, index)


def _keep_leading(trunk: Trunk, image_shape: ImageShape, ratio: float) -> None:
    """Remove all but the first channels of each hidden layer of `trunk`, whatever their values are."""
    tp = require("torch_pruning", "torch-pruning")
    probe = nn.Linear(trunk.width, 1, dtype=torch.double)
    images = torch.zeros(1, *image_shape, dtype=torch.double)
    flattened = [path for path, layer in trunk.chain() if isinstance(layer, FlattenPlaces)]
    norms = {layer: layer.num_channels // layer.num_groups for layer in trunk.modules() if isinstance(layer, nn.GroupNorm)}
    for path in flattened:
        flatten_by(nn.Flatten(), trunk, path, images)
    try:
        graph = tp.DependencyGraph().build_dependency(
            nn.Sequential(trunk, probe),
            images,
            customized_pruners={FrozenBatchNorm: norm_pruner(tp), LocalBatchNorm: norm_pruner(tp)},
        )
        for group in graph.get_all_groups(ignored_layers=[probe], root_module_types=[nn.Conv2d, nn.Linear]):
            layers = [dependency.target.module for dependency, _ in group]
            if probe in layers:
                continue
            channels, group_size = len(group[0].idxs), math.lcm(*(norms[layer] for layer in layers if layer in norms))
            num_kept = min(math.ceil(ratio * channels / group_size - 1e-9) * group_size, channels)
            if num_kept < channels:
                group.prune(list(range(num_kept, channels)))
        for layer, group_size in norms.items():
            layer.num_groups = layer.num_channels // group_size
        for path in flattened:
            flatten_by(FlattenPlaces(), trunk, path, images)
        with torch.no_grad():
            trunk(images)
    except (ZeroDivisionError, AssertionError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"widths.levels below 1 need a trunk whose channels can be traced, and those of {type(trunk).__name__} cannot: "
            f"{type(error).__name__}: {error}"
        ) from error
