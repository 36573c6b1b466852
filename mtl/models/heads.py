"""One head per subtask, all in one fused layer.

Every parameter of a head has the subtasks as its first axis. The features are the same for all subtasks, [B, h], or each has its own,
[B, T, h]. Logits are linear in the features, <directions_t, f> and a constant, or, where `cosine` is true, the cosine of `directions_t`
and f. Task balancing relies on that (`balancing.gramian`).
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["orthogonal", "random"]


class LinearHeads(nn.Module):
    """The score of a subtask is linear in the features.

    Logit of subtask t: w_t . h + b_t.
    """

    cosine = False

    def __init__(self, width: int, num_tasks: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(num_tasks, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, features: Tensor) -> Tensor:
        """[B, h] or [B, T, h] -> logits [B, T]."""
        return _products(features, self.weight) + self.bias if features.ndim == 3 else F.linear(features, self.weight, self.bias)

    def directions(self) -> Tensor:
        """The weights, [T, h]."""
        return self.weight


class CosineHeads(nn.Module):
    """The score of a subtask is the cosine between its weights and the features; comparable across clients.

    Logit of subtask t: the cosine between w_t and the features; comparable across subtasks that never met.

    The weights start orthogonal, so that people on different clients begin in different directions, and with a small head learning rate
    stay there, although no client ever sees another's people (fixed codes are the limit: Hoffer et al. 2018, "Fix your classifier", ICLR).
    """

    cosine = True

    def __init__(self, width: int, num_tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(num_tasks, width)))

    def forward(self, features: Tensor) -> Tensor:
        """[B, h] or [B, T, h] -> cosines [B, T]."""
        return _cosines(features, self.directions())

    def directions(self) -> Tensor:
        """The weights, [T, h], of length 1."""
        return _unit(self.weight)


class FixedCodes(nn.Module):
    """The score is the cosine between the features and a fixed code of the subtask, never trained or sent.

    Codes that stay apart whatever the clients see cannot collapse, even where each client has the positives of one subtask alone
    (Hoffer et al., ICLR 2018; the random class embeddings of Yu et al., ICML 2020).

    Args:
        kind: orthogonal, which for more subtasks than features is as near to it as can be (a tight frame), or random directions.
    """

    cosine = True
    codes: Tensor

    def __init__(self, width: int, num_tasks: int, *, kind: str = "orthogonal") -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"heads.kind must be one of {', '.join(get_args(Kind))}, got {kind}")
        codes = torch.empty(num_tasks, width)
        codes = nn.init.orthogonal_(codes) if kind == "orthogonal" else nn.init.normal_(codes)
        self.register_buffer("codes", _unit(codes))

    def forward(self, features: Tensor) -> Tensor:
        """[B, h] or [B, T, h] -> cosines [B, T]."""
        return _cosines(features, self.codes)

    def directions(self) -> Tensor:
        """The codes, [T, h], of length 1."""
        return self.codes


def _products(features: Tensor, directions: Tensor) -> Tensor:
    """[B, T, h] and [T, h] -> [B, T]."""
    return torch.einsum("bth,th->bt", features, directions)


def _cosines(features: Tensor, directions: Tensor) -> Tensor:
    """Features [B, h] or [B, T, h] and directions [T, h] of length 1 -> [B, T]."""
    unit = _unit(features)
    return _products(unit, directions) if unit.ndim == 3 else F.linear(unit, directions)


def _unit(vectors: Tensor) -> Tensor:
    """Scale to length 1 along the last axis; torch's `normalize` would be six operations more in an exported file."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.clamp_min(1e-12)
