"""What a model costs for one image, as far as it does not depend on the machine."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def num_nonzero(model: nn.Module) -> int:
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def count_flops(model: nn.Module, image_shape: Sequence[int], pixels: torch.dtype = torch.float32) -> int:
    """Floating-point operations of convolutions and matrix products for one image; a multiplication with its addition counts as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape, dtype=pixels))
    return int(counter.get_total_flops())
