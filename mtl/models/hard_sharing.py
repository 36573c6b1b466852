"""Hard parameter sharing (Caruana 1997): one trunk, one head per subtask, and the loss that may learn parameters of its own."""

from torch import Tensor, nn

from mtl.models.norm import refuse_batch_norm
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

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.heads(self.trunk(images))
        return logits

    def params(self) -> Params:
        """The parameters by name, detached: they share memory with the module."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the subtasks (first axis T) and not to the shared part."""
    return name.startswith(HEADS)
