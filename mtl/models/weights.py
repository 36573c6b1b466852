"""Weights to start a trunk from: published ones of torchvision, a file of them, or the trunk of a run.

Where the images have c channels and the weights were trained on k of them, each filter of the first convolution becomes its sum over
the k channels divided by c, on every channel: its output for an image whose channels are all the same does not change. For grey images
that is the sum over red, green and blue.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from mtl.base.types import Params
from mtl.models.cnn import Trunk

TRUNK = "model.trunk."  # of the names in a run's checkpoint
CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
# The buffers of a BatchNorm, which a trunk may have replaced.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_weights(trunk: Trunk, weights: str) -> None:
    """Overwrite the parameters and buffers of a trunk.

    Args:
        trunk: the trunk, whose BatchNorm has been replaced or not.
        weights: a run directory (its best checkpoint, else its last), a checkpoint file, a file of torchvision's state dict, or the
            name of published weights, which torchvision downloads unless they are in torch's cache. An embedding behind torchvision's
            layers, which published weights do not have, does not change.

    Raises:
        ValueError: where there are no such weights, where they cannot be read or fetched, and where they do not fit, listing every
            parameter that does not.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        checkpoints = [path / name for name in CHECKPOINTS if (path / name).is_file()]
        if not checkpoints:
            raise ValueError(f"weights={weights} must be a run directory with {' or '.join(CHECKPOINTS)}, and it has neither")
        source = _named(trunk, _read(checkpoints[0], weights), weights)
    elif path.is_file():
        source = _named(trunk, _read(path, weights), weights)
    else:
        source = _from_torchvision(trunk, _fetch(trunk, weights))
    _put(trunk, source, weights)


def adapt_channels(filters: Tensor, channels: int) -> Tensor:
    """Filters for another number of channels, [out, k, height, width] to [out, channels, height, width]; see above."""
    return (filters.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1).contiguous()


def _read(path: Path, weights: str) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"weights={weights} must hold a whole torch file of tensors, and {path} does not: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"weights={weights} must hold tensors by name, and {path} holds a {type(content).__name__}")
    return content


def _named(trunk: Trunk, content: Mapping[str, Any], weights: str) -> Params:
    """The tensors of a checkpoint of ours or of a state dict of torchvision's, under the names that the trunk has for them."""
    if "state_dict" not in content or "account" not in content:
        return _from_torchvision(trunk, content)
    if any(name.startswith("params/trunk.") for name in content.get("bank", {})):
        raise ValueError(f"weights={weights} must have one trunk for all, and in that run each client keeps its own")
    state = content["state_dict"]
    return {name.removeprefix(TRUNK): value for name, value in state.items() if name.startswith(TRUNK)}


def _from_torchvision(trunk: Trunk, state: Mapping[str, Any]) -> Params:
    dropped = () if trunk.published is None else trunk.published.dropped
    named = {f"features.{name}": value for name, value in state.items() if name.partition(".")[0] not in dropped}
    embedding = {name: value for name, value in trunk.state_dict().items() if name.startswith("features.embedding.")}
    return embedding | named


def _fetch(trunk: Trunk, name: str) -> Mapping[str, Any]:
    known = [] if trunk.published is None else list(trunk.published.weights.__members__)
    last = name.rpartition(".")[2]
    if trunk.published is None or last not in known or name not in (last, f"{trunk.published.weights.__name__}.{last}"):
        names = f", or one of {', '.join(known)}" if known else "; none are published for this trunk"
        raise ValueError(f"weights must be null, a run directory or a file{names}; got {name}, which is none of them")
    entry = trunk.published.weights[last]
    try:
        state: Mapping[str, Any] = entry.get_state_dict(progress=False, check_hash=True, map_location="cpu")
    except (URLError, TimeoutError, ConnectionError) as error:
        place = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
        raise ValueError(f"weights={name} cannot be fetched ({error}); put {entry.url} at {place}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        place = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
        raise ValueError(f"weights={name} are damaged ({error}); delete {place}") from error
    return state


def _put(trunk: Trunk, source: Params, weights: str) -> None:
    target = trunk.state_dict()
    first = next((f"{name}.weight" for name, layer in trunk.named_modules() if isinstance(layer, nn.Conv2d)), "")
    if first in source and source[first].dim() == 4:
        there, here = source[first].shape, target[first].shape
        if there[1] != here[1] and (there[0], there[2:]) == (here[0], here[2:]):
            source = source | {first: adapt_channels(source[first], here[1])}
    problems = [f"{name} is missing" for name in target if name not in source and not name.endswith("num_batches_tracked")]
    problems += [f"{name} is in excess" for name in source if name not in target and not name.endswith(STATISTICS)]
    problems += [
        f"{name} is of shape {list(source[name].shape)} instead of {list(value.shape)}"
        for name, value in target.items()
        if name in source and source[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"weights={weights} must fit the trunk, and {len(problems)} parameters do not: {'; '.join(problems)}")
    trunk.load_state_dict({name: source[name] for name in target if name in source}, strict=False)
