"""Hard parameter sharing (Caruana 1997): one trunk for all subtasks, and one head each."""

from torch import nn

from mtl.models.architecture import Parts


def hard_sharing(parts: Parts) -> tuple[nn.Module, nn.Module]:
    """One trunk for all subtasks (Caruana 1997)."""
    trunk = parts.make_trunk()
    return trunk, parts.make_heads(trunk.width)
