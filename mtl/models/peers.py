"""Trunks of different architectures that give features of one width and share the heads.

FedDF's prototypes: Lin et al., NeurIPS 2020, Algorithm 3. A client of a federation trains one of them; the server evaluates one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mtl.models.cnn import ImageShape, Trunk


class Peers(Trunk):
    """Named trunks of which one is called: `chosen`, at the start the server's.

    Args:
        trunks: by name.
        server: name of the trunk that is evaluated.
        shares: see `peers`.
    """

    def __init__(self, trunks: Mapping[str, Trunk], server: str, shares: Mapping[str, float] | None = None) -> None:
        widths = {name: trunk.width for name, trunk in trunks.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"trunk.trunks must give features of one width, for heads that all share, got {widths}")
        super().__init__(nn.ModuleDict(trunks), widths[server])
        self.names = (server, *(name for name in trunks if name != server))
        self.chosen, self.shares = server, shares

    @property
    def dealt(self) -> list[float] | None:
        """The `shares`, in the order of `names`."""
        return None if self.shares is None else [self.shares.get(name, 0) for name in self.names]

    def forward(self, images: Tensor) -> Tensor:
        """[B, c, H, W] -> [B, h]."""
        features: Tensor = self.peer(self.chosen)(images)
        return features

    def peer(self, name: str) -> Trunk:
        """One of the trunks."""
        assert isinstance(self.features, nn.ModuleDict)
        trunk = self.features[name]
        assert isinstance(trunk, Trunk)
        return trunk

    def alone(self, name: str) -> "Peers":
        """A copy with one of the trunks: the same parameters under the same names."""
        return Peers({name: self.peer(name)}, name)

    @contextmanager
    def choosing(self, name: str) -> Iterator[None]:
        """Call another trunk inside the block."""
        before, self.chosen = self.chosen, name
        try:
            yield
        finally:
            self.chosen = before


def peers(image_shape: ImageShape, *, trunks: dict[str, Any], server: str, shares: dict[str, float] | None = None) -> Peers:
    """Several trunks of different architectures; each client trains one, and all share the heads.

    Args:
        image_shape: (channels, height, width) of an image.
        trunks: at least two members of `trunk`, by names that you choose (+trunk@trunk.trunks.NAME=MEMBER).
        server: name of the trunk that is evaluated.
        shares: how many clients, or which share of them, train each trunk, by name; null where `fleet.memory=shrink` gives each
            client the largest that its device holds.
    """
    if len(trunks) < 2:
        raise ValueError(f"trunk.trunks must name at least 2 trunks, as +trunk@trunk.trunks.NAME=MEMBER does, got {len(trunks)}")
    if server not in trunks:
        raise ValueError(f"trunk.server must be one of trunk.trunks, {', '.join(trunks)}, got {server}")
    if shares is not None and not set(shares) <= set(trunks):
        raise ValueError(f"trunk.shares must be of trunk.trunks, {', '.join(trunks)}, got {', '.join(shares)}")
    # In an order that does not depend on the order in the configuration.
    return Peers({name: trunks[name](image_shape) for name in sorted(trunks)}, server, shares)
