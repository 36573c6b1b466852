"""Randomness that depends on nothing but its name.

A draw is a function of (seed, purpose, round, client): the same in every backend, on any number of ranks and after a resume.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed from the name of a draw.

    Args:
        seed: of the run.
        purpose: what is drawn.
        round: the round, 0 where the draw does not depend on it.
        client: the client, 0 where the draw does not depend on it.
    """
    name = f"{seed}/{purpose}/{round}/{client}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """A new CPU generator for one draw."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, round, client))


# Counter-based random numbers (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a number is a hash of a key and
# of its place, so that any number of them can be drawn at once, on any device, for a whole cohort of clients, and each client gets
# what it would get alone. The mixing steps are those of Wellons' `lowbias32`.


def client_keys(seed: int, purpose: str, round: int, clients: Sequence[int]) -> Tensor:
    """One key for each client, int32 [K, 2]."""
    words = np.array([derive_seed(seed, purpose, round, client) for client in clients], dtype="<i8")
    return torch.from_numpy(words.view("<i4").reshape(-1, 2).astype(np.int32))


def random_bits(key: Tensor, place: Tensor) -> Tensor:
    """32 random bits, int32, of the shape that key[..., 0] and place broadcast to.

    Args:
        key: int32 [..., 2].
        place: int32.
    """
    bits = place + key[..., 0]
    bits = (bits ^ _shift(bits, 16)) * 0x7FEB352D
    bits = bits ^ key[..., 1]
    bits = (bits ^ _shift(bits, 15)) * -0x7B935975
    return bits ^ _shift(bits, 16)


def random_uniform(key: Tensor, place: Tensor) -> Tensor:
    """Float32 in [0, 1), of the shape of `random_bits`."""
    return _shift(random_bits(key, place), 8).float() * 2.0**-24


def split_key(key: Tensor, place: Tensor) -> Tensor:
    """A new key for each place; int32 [..., 2] of the shape of `random_bits`."""
    return torch.stack([random_bits(key, 2 * place), random_bits(key, 2 * place + 1)], -1)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros: torch's own shift of a signed number repeats the sign."""
    return (bits >> by) & ((1 << (32 - by)) - 1)
