"""Dropout (Srivastava et al. 2014) whose masks are a function of a key and of the place in the batch.

torch's own dropout takes the next numbers of a global generator, so that a client's masks would depend on which clients train with it.
Here the learner gives every layer a key for each step, and a client gets the same masks alone, in a stacked cohort, on any rank and in a
CUDA graph.
"""

import math
import sys
from typing import Literal

import torch
from torch import Tensor, nn

from mtl.base.seeding import random_bits

Whole = Literal["element", "channel", "image"]


class KeyedDropout(nn.Module):
    """Zeroes elements, whole channels or whole images with probability p, and scales the others by 1 / (1 - p).

    The buffer `key`, int32 [2], is replaced before each step; `whole` says what is zeroed at once.
    """

    key: Tensor

    def __init__(self, p: float, *, whole: Whole = "element") -> None:
        super().__init__()
        self.p, self.whole = p, whole
        self.register_buffer("key", torch.zeros(2, dtype=torch.int32), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape to the same shape."""
        if not self.training or self.p == 0:
            return inputs
        if self.p == 1:
            return inputs * 0
        bits = random_bits(self.key, self._places(inputs))
        # Signed bits are uniform in [-2^31, 2^31).
        kept = bits >= round(self.p * 2**32) - 2**31
        return inputs * (kept.to(inputs.dtype) / (1 - self.p))

    def _places(self, inputs: Tensor) -> Tensor:
        if self.whole != "element":
            kept = 2 if self.whole == "channel" else 1
            shape = [*inputs.shape[:kept], *[1] * (inputs.dim() - kept)]
            return torch.arange(math.prod(shape), dtype=torch.int32, device=inputs.device).view(shape)
        places = torch.arange(inputs.numel(), dtype=torch.int32, device=inputs.device)
        if inputs.dim() != 4:
            return places.view(inputs.shape)
        # Numbered channels-last, the usual memory layout of the images.
        batch, channels, height, width = inputs.shape
        return places.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"p={self.p}, whole={self.whole}"


def use_keyed_dropout(module: nn.Module) -> None:
    """Replace every dropout layer inside `module` by a `KeyedDropout`, stochastic depth (Huang et al. 2016) too."""
    # torchvision takes long to import; where it has not been imported, there is no such layer.
    stochastic_depth = getattr(sys.modules.get("torchvision.ops"), "StochasticDepth", ())
    for path, layer in list(module.named_modules()):
        if isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout) or (
            isinstance(layer, stochastic_depth) and layer.mode != "row"
        ):
            raise ValueError(f"{type(layer).__name__} ({path}) draws from torch's global generator; use Dropout")
        if isinstance(layer, stochastic_depth):
            _put(module, path, KeyedDropout(layer.p, whole="image"))
        elif isinstance(layer, nn.modules.dropout._DropoutNd):
            _put(module, path, KeyedDropout(layer.p, whole="element" if isinstance(layer, nn.Dropout) else "channel"))


def _put(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Make `layer` the one at `path` inside `module`."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
