"""What a client is sent and sends in a round: the shared parameters, and the rows of the heads of the subtasks that it trains.

Both sides know the names, shapes and types, the order of the parameters, and who trains what. A message therefore needs no header: it
is the bytes of its tensors, one after the other. Buffers are constants of the model, or made anew in each step, and do not travel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params
from mtl.federation.layout import is_head


def message(travelling: Params, tasks: Tensor) -> Params:
    """travelling: parameters, or an update of them, that leave the server or a client; tasks: bool [T], what the client trains."""
    return {name: value[tasks.to(value.device)] if is_head(name) else value for name, value in travelling.items()}


def pack(tensors: Params) -> bytes:
    """The raw bytes of the tensors in their order, in the machine's byte order."""
    return b"".join(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for value in tensors.values())


def unpack(data: bytes, like: Params) -> Params:
    """The tensors of a message. like: names, shapes and types, in the order in which they were packed."""
    expected = tree.num_bytes(like)
    if len(data) != expected:
        raise ValueError(f"the message must have {expected} bytes, got {len(data)}")
    tensors, place = {}, 0
    for name, value in like.items():
        end = place + value.numel() * value.element_size()
        # Of bytes of its own: a type may not begin just anywhere in memory.
        content = bytearray(data[place:end])
        tensors[name] = torch.frombuffer(content, dtype=value.dtype).view(value.shape) if content else torch.empty_like(value)
        place = end
    return tensors


def client_bytes(travelling: Params, assignment: Tensor) -> Tensor:
    """The length of each client's message, int64 [C]. assignment: bool [C, T]."""
    shared = tree.num_bytes({name: value for name, value in travelling.items() if not is_head(name)})
    per_task = tree.num_bytes({name: value[:1] for name, value in travelling.items() if is_head(name)})
    return shared + per_task * assignment.sum(1)


def message_bytes(travelling: Params, assignment: Tensor, clients: Sequence[int]) -> int:
    """What some clients send, or are sent, in a round."""
    return int(client_bytes(travelling, assignment[list(clients)]).sum())


def calibration_bytes(assignment: Tensor) -> int:
    """What all clients send when they calibrate their subtasks (`fusion=platt`): a scale and an offset each, float32."""
    return 2 * 4 * int(assignment.sum())
