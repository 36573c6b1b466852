"""What replaces BatchNorm (Ioffe & Szegedy, ICML 2015), whose running statistics are state that clients cannot share.

    refuse   nothing: it is an error
    group    GroupNorm (Wu & He, ECCV 2018): statistics of each image alone
    frozen   y = weight (x - m) / sqrt(v + eps) + bias    m, v: the running statistics as they are, of a pretrained trunk say
    local    the same                                     m, v: mean and biased variance of the valid images in the batch

`local` trains as static BatchNorm does (HeteroFL, Diao, Ding & Tarokh, ICLR 2021), which then collects statistics from the clients
to evaluate with. Here nothing leaves a client: evaluation also normalises by its own batch (prediction-time BatchNorm, Nado et al.
2020), so that the score of an image depends on those scored with it: batches of images in their order, on any number of ranks.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtl.models.group_norm import GroupNorm

Norm = Literal["refuse", "group", "frozen", "local"]


def replace_batch_norm(trunk: nn.Module, norm: str = "refuse") -> nn.Module:
    """Replace every BatchNorm of `trunk` by what `norm` says, with the same eps and parameters.

    Changes `trunk` and returns it, or the replacement where it is a BatchNorm itself.

    Raises:
        ValueError: where `norm` is unknown, where it is `refuse` and there is a BatchNorm, and where it is `frozen` and one has no
            running statistics.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm}")
    if norm == "refuse":
        refuse_batch_norm(trunk)
        return trunk
    make = {"group": _group_norm, "frozen": FrozenBatchNorm, "local": LocalBatchNorm}[norm]
    replaced: dict[nn.Module, nn.Module] = {layer: make(layer) for layer in trunk.modules() if isinstance(layer, _BatchNorm)}
    for parent in list(trunk.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                setattr(parent, name, replaced[child])
    return replaced.get(trunk, trunk)


def norm_params(module: nn.Module) -> list[str]:
    """Return the names of the parameters of the norm layers of a module."""
    kinds = (_ChannelNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return [
        f"{path}.{name}" if path else name
        for path, layer in module.named_modules()
        if isinstance(layer, kinds)
        for name, _ in layer.named_parameters(recurse=False)
    ]


def refuse_batch_norm(model: nn.Module) -> None:
    """Raise ValueError where `model` has a BatchNorm."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ValueError(
                f"BatchNorm ({name or type(layer).__name__}) has running statistics that clients cannot share; "
                "replace it by norm=group, norm=frozen or norm=local"
            )


class _ChannelNorm(nn.Module):
    """Takes over eps, weight and bias of a BatchNorm; the last two may be missing."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, replaced: _BatchNorm) -> None:
        super().__init__()
        self.eps = replaced.eps
        self.register_parameter("weight", replaced.weight)
        self.register_parameter("bias", replaced.bias)

    def _normalise(self, features: Tensor, mean: Tensor | float, variance: Tensor) -> Tensor:
        """Normalise features [B, c, ...] by a mean and a variance [c]."""
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        channels = (-1, *[1] * (features.ndim - 2))
        return features * scale.view(channels) + shift.view(channels)


class FrozenBatchNorm(_ChannelNorm):
    """Always normalises by the running statistics, which are constants.

    Weight and bias are trained, unlike those of torchvision's FrozenBatchNorm2d.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, replaced: _BatchNorm) -> None:
        if replaced.running_mean is None or replaced.running_var is None:
            raise ValueError(f"norm=frozen needs the running statistics of every BatchNorm, got {replaced}")
        super().__init__(replaced)
        self.register_buffer("running_mean", replaced.running_mean)
        self.register_buffer("running_var", replaced.running_var)

    def forward(self, features: Tensor) -> Tensor:
        """[B, c, ...] to the same shape."""
        return self._normalise(features, self.running_mean, self.running_var).to(features.dtype)


class LocalBatchNorm(_ChannelNorm):
    """Always normalises by the statistics of the batch, and tracks nothing.

    `valid`, [B] or a scalar for all, is false where an image is padding. It is a buffer so that a caller can replace it
    by the mask of each training step; as built, and in evaluation mode, all images are valid. Padding has no influence on the others,
    and its output is always the bias: normalised by the statistics of others, it could grow from layer to layer without bounds.
    """

    valid: Tensor

    def __init__(self, replaced: _BatchNorm) -> None:
        super().__init__(replaced)
        self.register_buffer("valid", torch.ones((), dtype=torch.bool), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, c, ...] to the same shape; the statistics have at least single precision."""
        valid = self.valid.bool() if self.training else torch.ones((), dtype=torch.bool, device=features.device)
        valid = valid.expand(features.shape[0]).view(-1, *[1] * (features.ndim - 1))
        count = (valid.sum() * math.prod(features.shape[2:])).clamp_min(1)
        values = features.to(torch.promote_types(features.dtype, torch.float32))
        dims = (0, *range(2, features.ndim))
        mean = torch.where(valid, values, 0).sum(dims, keepdim=True) / count
        centred = torch.where(valid, values - mean, 0)
        variance = centred.square().sum(dims) / count
        return self._normalise(centred, 0.0, variance).to(features.dtype)


def _group_norm(replaced: _BatchNorm) -> GroupNorm:
    """GroupNorm of at most 32 groups (the paper's number), each of two channels or more where there are two.

    A BatchNorm1d may have no places, and two numbers normalised are but a sign: its groups are of 16 or more (the paper's other
    choice), or all channels are one.
    """
    channels = replaced.num_features
    at_least = 16 if isinstance(replaced, nn.BatchNorm1d) else 2
    most = min(32, max(channels // at_least, 1))
    groups = max(number for number in range(1, most + 1) if channels % number == 0)
    layer = GroupNorm(groups, channels, eps=replaced.eps, affine=replaced.affine)
    layer.register_parameter("weight", replaced.weight)
    layer.register_parameter("bias", replaced.bias)
    return layer
