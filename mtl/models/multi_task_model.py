"""The model that every method trains: what is shared, what belongs to the subtasks, and the loss.

As it is, hard parameter sharing (Caruana 1997): one trunk and one head per subtask. Other architectures fill the two places with
other modules.
"""

import copy

from torch import Tensor, nn

from mtl.base.types import Params
from mtl.models.architecture import Representation
from mtl.models.dropout import KeyedDropout, use_keyed_dropout
from mtl.models.norm import LocalBatchNorm, norm_params, refuse_batch_norm


class MultiTaskModel(nn.Module):
    """Images [B, c, H, W] to logits [B, T], by way of a representation of the images.

    The representation is features [B, h], or whatever else trunk and heads agree on (see `architecture`). Parameters under `heads.` have
    the subtasks as their first axis and belong to the subtask; all others are shared.

    Args:
        trunk: images [B, c, H, W] to a representation.
        heads: a representation to logits [B, T].
        loss: a pair loss, which may have parameters.
        detector: a head that finds faces on the trunk's feature map (see `centre`); None for none.

    Attributes:
        activation_numel: activation values per image when scoring; bounds the batch size; 1 where they need not be counted.
        dropouts: names of the dropout layers.
        local_norms: names of the layers that normalise with the statistics of the batch.
        norms: names of the parameters of the trunk's norm layers.
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
        self.norms = frozenset(f"trunk.{name}" for name in norm_params(trunk))

    def forward(self, images: Tensor) -> Tensor:
        """[B, c, H, W] -> [B, T]."""
        logits: Tensor = self.heads(self.trunk(images))
        return logits

    def penalty(self, representation: Representation) -> Tensor | None:
        """A term added to each image's loss, [B, T] or [1, T]; None where the heads have none."""
        penalty = getattr(self.heads, "penalty", None)
        return None if penalty is None else penalty(representation)

    def with_trunk(self, trunk: nn.Module) -> "MultiTaskModel":
        """Another trunk with copies of these heads, this loss and this detector."""
        return copy.deepcopy(MultiTaskModel(trunk, self.heads, self.loss, self.detector))

    def step_buffers(self, keys: Tensor, valid: Tensor) -> Params:
        """What changes from step to step without being trained, by name.

        Args:
            keys: int32 [L, 2], one for each dropout layer.
            valid: [B], False for padding.
        """
        buffers = {f"{name}.key": key for name, key in zip(self.dropouts, keys, strict=True)}
        return buffers | {f"{name}.valid": valid for name in self.local_norms}

    def set_step(self, keys: Tensor, valid: Tensor) -> None:
        """Put the buffers of a step in their places."""
        for name, value in self.step_buffers(keys, valid).items():
            path, _, last = name.rpartition(".")
            setattr(self.get_submodule(path), last, value)

    def params(self) -> Params:
        """The parameters by name, detached: they share memory with the module."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}
