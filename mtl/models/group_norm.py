"""GroupNorm (Wu & He, ECCV 2018) that can be stacked by `vmap` on every torch that the project supports.

    y = weight (x - m) / sqrt(v + eps) + bias    m, v: mean and biased variance of an image's group of neighbouring channels

torch's own operation computes it where it can. That of torch 2.11 refuses channels-last maps inside of `vmap` ("NYI: querying
is_contiguous inside of vmap for memory_format other than torch.contiguous_format"), which stacked clients with stacked trunks have; there,
and where such a step is compiled, the equation is written out, with the same numbers to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

REFUSAL = "querying is_contiguous inside of vmap"


class GroupNorm(nn.GroupNorm):
    """Parameters and numbers of `nn.GroupNorm`."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, c, ...] to the same shape, channels-last where the input is."""
        if STACKS:
            return super().forward(input)
        if not torch.compiler.is_compiling():
            try:
                return super().forward(input)
            except RuntimeError as error:
                if REFUSAL not in str(error):
                    raise
        return normalise_groups(input, self.num_groups, self.weight, self.bias, self.eps)


def normalise_groups(features: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Compute `F.group_norm` in operations that can all be stacked.

    Args:
        features: [B, c, ...].
        num_groups: groups of channels.
        weight: [c].
        bias: [c].
        eps: added to the variance.

    Returns:
        the shape of `features`.
    """
    values = features.to(torch.promote_types(features.dtype, torch.float32)).unflatten(1, (num_groups, -1))
    places = tuple(range(2, values.ndim))
    # Not `var_mean`, which warns where there is no image.
    centred = values - values.mean(places, keepdim=True)
    normal: Tensor = (centred * torch.rsqrt(centred.square().mean(places, keepdim=True) + eps)).flatten(1, 2)
    channels = (-1, *[1] * (features.ndim - 2))
    if weight is not None:
        normal = normal * weight.view(channels)
    if bias is not None:
        normal = normal + bias.view(channels)
    return normal.to(features.dtype)


def _stacks() -> bool:
    maps = torch.zeros(4, 2, 2, 2).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 2))
    try:
        vmap(lambda image: F.group_norm(image, 1))(maps)
    except RuntimeError as error:
        if REFUSAL not in str(error):
            raise
        return False
    return True


STACKS = _stacks()
"""Whether torch's own operation works on channels-last maps inside of `vmap`."""
