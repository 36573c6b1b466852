"""Randomness that depends on nothing but its name.

A draw is a function of (seed, purpose, round, client): the same in every backend, on any number of ranks and after a resume.
"""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed from the name of a draw."""
    name = f"{seed}/{purpose}/{round}/{client}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """A CPU generator of its own for one draw."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, round, client))
