"""The message of a client in a round: the shared parameters, and the head rows of the subtasks that it trains.

Server and client both know the names, shapes, types and order of the parameters, and who trains what. A message therefore has no header:
it is the bytes of its tensors, one after the other. Buffers are constants, or are made anew in each step, and do not travel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params
from mtl.federation.layout import is_head


def message(travelling: Params, tasks: Tensor) -> Params:
    """Return the tensors of a client's message.

    Args:
        travelling: the parameters that travel in this round, or an update of them.
        tasks: bool [T], the subtasks that the client trains.
    """
    return {name: value[tasks.to(value.device)] if is_head(name) else value for name, value in travelling.items()}


def pack(tensors: Params) -> bytes:
    """Return the bytes of the tensors, one after the other, in the machine's byte order."""
    return b"".join(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for value in tensors.values())


def unpack(data: bytes, like: Params) -> Params:
    """Return the tensors of a message.

    Args:
        data: the message.
        like: tensors of the same names, shapes and types, in the order in which they were packed.

    Raises:
        ValueError: the message has another length.
    """
    expected = tree.num_bytes(like)
    if len(data) != expected:
        raise ValueError(f"the message must have {expected} bytes, got {len(data)}")
    tensors, start = {}, 0
    for name, value in like.items():
        end = start + value.numel() * value.element_size()
        # A copy, because a type may need aligned memory.
        content = bytearray(data[start:end])
        tensors[name] = torch.frombuffer(content, dtype=value.dtype).view(value.shape) if content else torch.empty_like(value)
        start = end
    return tensors


def client_bytes(travelling: Params, assignment: Tensor) -> Tensor:
    """Return the bytes of each client's message, int64 [C]. `assignment` is bool [C, T]."""
    shared = tree.num_bytes({name: value for name, value in travelling.items() if not is_head(name)})
    per_task = tree.num_bytes({name: value[:1] for name, value in travelling.items() if is_head(name)})
    return shared + per_task * assignment.sum(1)


def message_bytes(travelling: Params, assignment: Tensor, clients: Sequence[int]) -> int:
    """Return the bytes that some clients send, or are sent, in a round. `assignment` is bool [C, T]."""
    return int(client_bytes(travelling, assignment[list(clients)]).sum())


def calibration_bytes(assignment: Tensor) -> int:
    """Return the bytes that all clients send with `fusion=platt`: a scale and an offset for each of their subtasks, float32."""
    return 2 * 4 * int(assignment.sum())
