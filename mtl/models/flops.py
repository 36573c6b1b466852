"""What an image and a training step cost: FLOPs, and the bytes that are saved for the backward pass.

**The FLOPs of an image** are those of the forward pass of the graph that a device runs, from stored pixels to scores: twice the model's
where scores are means over the image and its mirror image. Of a model that finds faces, the image is a cut-out face; a scene is counted
separately (`count_forward` of the detector). A training step sees each image once, mirrored or not.

FLOPs are those of `torch.utils.flop_counter`: matrix products and convolutions, a multiplication and an addition being two
(FLOP = 2 MAC), in the forward pass and in the backward pass to the weights and, but for the first layer, to the inputs. Elementwise
operations, norms and activations are left out, a few percent of a convolutional network. (torch counts the gradient of a grouped
convolution's weights as if it were dense; here it is as much as the forward pass.)

The bytes are those of the distinct storages that autograd saves in the forward pass: the batch itself where a layer needs it, but no
parameters and buffers.

Both are counted while the step runs on one image and on two, zeros, on the CPU: for pictures of a few thousand pixels this takes less
than tracing the shapes alone.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from mtl.models.cnn import Trunk

Loss = Callable[[nn.Module, int], Tensor]  # from the model and a number of images to what is differentiated


@dataclass(frozen=True)
class Line:
    """A cost that grows with the images of a batch."""

    fixed: int
    per_image: int

    def __call__(self, images: int, *, steps: int = 1) -> int:
        """Of several steps that see so many images in all."""
        return self.fixed * steps + self.per_image * images


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step, linear in its images.

    Attributes:
        forward: FLOPs of the forward pass.
        training: FLOPs of the whole step.
        saved: bytes saved for the backward pass.
    """

    forward: Line
    training: Line
    saved: Line


def count_step(model: nn.Module, loss: Loss) -> StepCost:
    """The cost of a step, linear in its images; `model` does not change."""
    model = copy.deepcopy(model).cpu().train()
    one, two = (count_once(model, loss, images) for images in (1, 2))
    return StepCost(*(Line(2 * first - second, second - first) for first, second in zip(one, two, strict=True)))


def _convolution_backward(
    grad_out: Any,
    inputs: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
    **out: Any,
) -> int:
    """Count, from the shapes, as much as the forward pass for each of inputs and weights that needs a gradient."""
    _, _, needed = rest
    return int(sum(needed[:2]) * conv_flop_count(inputs, weight, grad_out, transposed))


FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}


def count_once(model: nn.Module, loss: Loss, images: int) -> tuple[int, int, int]:
    """FLOPs forward, FLOPs of the step, bytes saved, of one step on some images."""
    # Keep the storages alive: the address of a freed one may be used again.
    model_storages = {
        s._cdata: s for s in (tensor.untyped_storage() for tensor in itertools.chain(model.parameters(), model.buffers()))
    }
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in model_storages:
            saved[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            total = loss(model, images)
        forward = counter.get_total_flops()
        num_bytes = sum(storage.nbytes() for storage in saved.values())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.autograd.grad(total, trained, allow_unused=True)
        return forward, counter.get_total_flops(), num_bytes


def count_forward(model: nn.Module, image_shape: Sequence[int], pixels: torch.dtype = torch.float32) -> int:
    """FLOPs of a forward pass on one image of zeros.

    Args:
        model: images to outputs.
        image_shape: (channels, height, width) of an image.
        pixels: the type of the image.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape, dtype=pixels))
    return int(counter.get_total_flops())


def image_flops(model: nn.Module, image_shape: Sequence[int], *, mirror: bool) -> int:
    """The FLOPs of an image, see above.

    Args:
        model: images to scores; it does not change.
        image_shape: (channels, height, width) of an image.
        mirror: whether the mirror image is scored too.
    """
    model = copy.deepcopy(model).cpu().eval()
    for part in model.modules():
        if isinstance(part, Trunk):
            part.passed_over = 0  # training may start from features; a device does not
    return (2 if mirror else 1) * count_forward(model, image_shape, next(model.parameters()).dtype)


def num_parameters(model: nn.Module) -> int:
    """The number of trained values of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
