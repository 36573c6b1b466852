"""Hard parameter sharing (Caruana 1997): one trunk, one head per subtask, and the loss that may learn parameters of its own."""

from torch import Tensor, nn

from mtl.models.dropout import KeyedDropout, use_keyed_dropout
from mtl.models.norm import LocalBatchNorm, refuse_batch_norm
from mtl.types import Params

HEADS = "heads."


class HardSharing(nn.Module):
    """images [B, c, H, W] to logits [B, T].

    Parameters under `heads.` have the subtasks as their first axis and belong to the subtask; all others are shared.
    """

    def __init__(self, trunk: nn.Module, heads: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = heads
        self.loss = loss
        refuse_batch_norm(self)
        use_keyed_dropout(self)
        self.dropouts = [name for name, layer in self.named_modules() if isinstance(layer, KeyedDropout)]
        self.local_norms = [name for name, layer in self.named_modules() if isinstance(layer, LocalBatchNorm)]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.heads(self.trunk(images))
        return logits

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


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the subtasks (first axis T) and not to the shared part."""
    return name.startswith(HEADS)
