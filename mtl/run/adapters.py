"""Python objects in place of members: which objects a group takes, and the form in which the builders of a run call them."""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtl.balancing.contract import Balancer
from mtl.base.types import ImageData
from mtl.federation.algorithms.algorithm import Algorithm, ServerAlgorithm
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.algorithms.fedavg import FedAvg
from mtl.federation.server import Server
from mtl.losses.pairs import PairLoss, TaskCounts
from mtl.models.cnn import ImageShape, Trunk

# The attributes that an object of a group must have, and its name in error messages.
PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "client": (("learning_rate", "init", "step", "final", "groups", "for_stack", "without_decay"), "an optimiser"),
    "sampling": (("draw", "outcome", "write", "modelled"), "a sampling"),
    "schedule": (("factor",), "a schedule"),
    "work": (("batch_size", "num_steps", "num_samples"), "a LocalWork"),
}
CALLED = {
    "split": "a function (data, seed) -> Split",
    "subtasks": "a function (data) -> Subtasks",
    "partition": "a function (labels, seed) -> index tensors, one for each client",
    "assignment": "a function (positives, seed) -> bool [C, T]",
    "architecture": "a function (parts) -> (trunk, heads)",
    "augmentation": "a function (images, draw) -> images",
    "normalise": "a function (images) -> images",
}
BUILT = {
    "trunk": "an nn.Module, images [B, c, H, W] to features [B, h], or a function (image_shape) -> nn.Module",
    "heads": "an nn.Module, features [B, h] to logits [B, T], or a function (width, num_tasks) -> nn.Module",
    "loss": "a PairLoss, or a function (num_tasks) -> PairLoss",
}
OBJECT_GROUPS = ("data", "balancer", "algorithm", "server", *PARTS, *CALLED, *BUILT)


def adapt(group: str, value: Any) -> Any:
    """Check an object and return the form of it that a run uses.

    Args:
        group: the group in which it replaces a member.
        value: the object.

    Raises:
        ValueError: the group takes no such object.
    """
    if group in BUILT:
        if not isinstance(value, nn.Module) and (not callable(value) or isinstance(value, str)):
            raise _wrong(group, BUILT[group], value)
        if isinstance(value, nn.Module) and group == "loss" and not isinstance(value, PairLoss):
            raise _wrong(group, BUILT[group], value)
        makers: dict[str, Callable[..., nn.Module]] = {"trunk": make_trunk, "heads": make_heads, "loss": make_loss}
        return partial(makers[group], value)
    if group in PARTS:
        names, what = PARTS[group]
        missing = [name for name in names if not hasattr(value, name)]
        if missing or isinstance(value, type):
            raise _wrong(group, f"{what}, an object with {', '.join(names)}", value)
        return value
    if group in CALLED:
        if not callable(value):
            raise _wrong(group, CALLED[group], value)
        return value
    if group == "algorithm":
        return make_algorithm(value)
    if group == "server":
        return make_server(value)
    classes = {"data": (ImageData, "an ImageData"), "balancer": (Balancer, "a Balancer such as MGDA()")}
    if group not in classes:
        raise ValueError(
            f"{group} must be a name or a mapping of options, got {_shown(value)}; objects are taken by {', '.join(OBJECT_GROUPS)}"
        )
    kind, what = classes[group]
    if not isinstance(value, kind):
        raise _wrong(group, what, value)
    return value


def make_algorithm(value: Any) -> Algorithm:
    """Return an algorithm; one half alone is completed with the other of FedAvg.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, Algorithm):
        return value
    if isinstance(value, ServerAlgorithm):
        return Algorithm(value)
    if isinstance(value, ClientAlgorithm):
        return Algorithm(FedAvg(), value)
    raise _wrong("algorithm", "an Algorithm, a ServerAlgorithm or a ClientAlgorithm", value)


def make_server(value: Any) -> Server:
    """Return a server; an aggregator alone has no server steps.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, Server):
        return value
    if hasattr(value, "collect") and not isinstance(value, type | ServerAlgorithm):
        return Server(value)
    raise _wrong("server", "a Server, or an aggregator with collect", value)


def make_trunk(value: Any, image_shape: ImageShape) -> Trunk:
    """Build the trunk: a copy of a module, or the result of a function. Two black images are sent through it to find its width.

    Args:
        value: the module or function.
        image_shape: (c, H, W).

    Raises:
        ValueError: it does not take images of this shape, or does not give features [B, h].
    """
    module = _module("trunk", value, image_shape)
    with torch.no_grad():
        features = _try_out("trunk", module, torch.zeros(2, *image_shape), f"images [2, {', '.join(map(str, image_shape))}]")
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"trunk must give features [B, h], got {shape} for two images; end it with nn.Flatten(), for instance")
    if not features.is_floating_point():
        raise ValueError(f"trunk must give features of floating point, got {features.dtype}")
    return module if isinstance(module, Trunk) else Trunk(module, features.shape[1])


def make_heads(value: Any, width: int, num_tasks: int) -> nn.Module:
    """Build the heads: a copy of a module, or the result of a function.

    Args:
        value: the module or function.
        width: of the features.
        num_tasks: number T of subtasks.

    Raises:
        ValueError: they do not give logits [B, T], or a parameter does not have the subtasks as its first axis.
    """
    module = _module("heads", value, width, num_tasks)
    with torch.no_grad():
        logits = _try_out("heads", module, torch.zeros(2, width), f"features [2, {width}]")
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, num_tasks):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"heads must give logits [B, {num_tasks}], one for each subtask, got {shape} for two images")
    for name, parameter in module.named_parameters():
        if parameter.ndim < 1 or len(parameter) != num_tasks:
            raise ValueError(
                f"heads.{name} must have the {num_tasks} subtasks as its first axis, as a head belongs to its subtask, got "
                f"{list(parameter.shape)}"
            )
    return module


def make_loss(value: Any, num_tasks: int) -> PairLoss:
    """Build the loss: a copy of one, or the result of a function; raises ValueError where it does not give two terms [B, T]."""
    loss = _module("loss", value, num_tasks)
    if not isinstance(loss, PairLoss):
        raise _wrong("loss", BUILT["loss"], loss)
    counts = TaskCounts(torch.ones(num_tasks), torch.ones(num_tasks))
    with torch.no_grad():
        terms: Any = loss.terms(torch.zeros(2, num_tasks), counts)
    shapes = [tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__ for term in terms]
    if shapes != [(2, num_tasks)] * 2:
        raise ValueError(f"loss.terms must give two tensors [B, {num_tasks}], got {shapes} for two images")
    return loss


def _module(group: str, value: Any, *arguments: Any) -> nn.Module:
    if isinstance(value, nn.Module):
        return copy.deepcopy(value)
    try:
        inspect.signature(value).bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{group} must be {BUILT[group]}, got {_shown(value)}, which takes other arguments: {error}") from error
    module = value(*arguments)
    if not isinstance(module, nn.Module):
        raise _wrong(group, BUILT[group], module)
    return module


def _try_out(group: str, module: nn.Module, inputs: Tensor, what: str) -> Any:
    """The output in evaluation mode, so that no random numbers are drawn and no statistics change."""
    modes: Mapping[nn.Module, bool] = {layer: layer.training for layer in module.modules()}
    try:
        return module.eval()(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{group} must take {what}, and {type(module).__name__} raises {type(error).__name__}: {error}"
        ) from error
    finally:
        for layer, training in modes.items():
            layer.training = training


def _wrong(group: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{group} must be {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if isinstance(value, int | float | str | None):
        return repr(value)
    return f"a function {value.__name__}" if inspect.isfunction(value) else f"an object of {type(value).__name__}"
