"""Calls of many small kernels, recorded once as a CUDA graph and replayed: the launches cost more than the work of a small model."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 2  # calls before recording, in which libraries choose their kernels and the step is compiled
KEPT = 8  # graphs, each with memory of its own; more shapes than that run without


class CapturedCalls:
    """`function(tensors, shape, constant)`, replayed from a graph whenever tensors of the same shapes come again with the same `shape`;
    on other devices a plain call.

    tensors: by name, copied into the graph's own; constant: read where it lies, the same in every call. The function must not read a
    tensor on the host. What it returns is overwritten by the next call.
    """

    def __init__(self, function: Callable[[dict[str, Tensor], Any, Any], Any]) -> None:
        self.function = function
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]] = {}

    def __call__(self, tensors: dict[str, Tensor], shape: Hashable, constant: Any) -> Any:
        if next(iter(tensors.values())).device.type != "cuda":
            return self.function(tensors, shape, constant)
        key = (id(constant), shape, tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()))
        if key not in self._graphs:
            if len(self._graphs) == KEPT:
                return self.function(tensors, shape, constant)
            self._graphs[key] = self._record(tensors, shape, constant)
        graph, slots, outputs = self._graphs[key]
        for name, tensor in tensors.items():
            slots[name].copy_(tensor)
        graph.replay()
        return outputs

    def _record(
        self, tensors: dict[str, Tensor], shape: Hashable, constant: Any
    ) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]:
        slots = {name: tensor.clone() for name, tensor in tensors.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function(slots, shape, constant)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.function(slots, shape, constant)
        return graph, slots, outputs
