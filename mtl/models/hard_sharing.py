"""A model: what is shared, what belongs to the subtasks, and the loss, which may learn parameters of its own. As it is,
hard parameter sharing (Caruana 1997), one trunk and one head per subtask; other architectures fill the two places otherwise.
"""

import copy

from torch import Tensor, nn

from mtl.base.types import Params
from mtl.models.architecture import Parts, Representation
from mtl.models.dropout import KeyedDropout, use_keyed_dropout
from mtl.models.norm import LocalBatchNorm, refuse_batch_norm


def hard_sharing(parts: Parts) -> tuple[nn.Module, nn.Module]:
    """One trunk for all subtasks (Caruana 1997)."""
    trunk = parts.make_trunk()
    return trunk, parts.make_heads(trunk.width)


class HardSharing(nn.Module):
    """images [B, c, H, W] to logits [B, T], by way of a representation: features [B, h], or what else the two parts agree on (see
    `architecture`).

    Parameters under `heads.` have the subtasks as their first axis and belong to the subtask; all others are shared. `activation_numel`:
    activation values per image when scoring, 1 where they need not be counted. detector: None, or a head that finds faces on the trunk's
    map of a picture (see `centre`).
    """

    def __init__(self, trunk: nn.Module, heads: nn.Module, loss: nn.Module, detector: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = heads
        self.loss = loss
        self.detector = detector
        self.activation_numel: int = max(getattr(part, "activation_numel", 1) for part in (trunk, heads))
        refuse_batch_norm(self)
        use_keyed_dropout(self)
        self.dropouts = [name for name, layer in self.named_modules() if isinstance(layer, KeyedDropout)]
        self.local_norms = [name for name, layer in self.named_modules() if isinstance(layer, LocalBatchNorm)]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.heads(self.trunk(images))
        return logits

    def penalty(self, representation: Representation) -> Tensor | None:
        """What each image costs a subtask besides its loss, [B, T] or [1, T]; None where that is nothing."""
        own = getattr(self.heads, "penalty", None)
        return None if own is None else own(representation)

    def with_trunk(self, trunk: nn.Module) -> "HardSharing":
        """The same heads and the same loss, of one's own, on another trunk."""
        return copy.deepcopy(HardSharing(trunk, self.heads, self.loss, self.detector))

    def step_buffers(self, keys: Tensor, valid: Tensor) -> Params:
        """What changes from step to step without being trained, by name. keys: int32 [L, 2], one for each dropout layer; valid: [B]."""
        own_keys = {f"{name}.key": key for name, key in zip(self.dropouts, keys, strict=True)}
        return own_keys | {f"{name}.valid": valid for name in self.local_norms}

    def set_step(self, keys: Tensor, valid: Tensor) -> None:
        """Put the buffers of a step in their places."""
        for name, value in self.step_buffers(keys, valid).items():
            path, _, last = name.rpartition(".")
            setattr(self.get_submodule(path), last, value)

    def params(self) -> Params:
        """The parameters by name, detached: they share memory with the module."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}
