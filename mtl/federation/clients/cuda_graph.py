"""Calls of many small kernels, recorded once as a CUDA graph and replayed: for a small model the launches cost more than the kernels."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 2  # calls before recording, in which libraries choose their kernels and the step is compiled
MAX_GRAPHS = 8  # each takes memory; further shapes run without a graph


class CapturedCalls:
    """Calls `function(tensors, shape, constant)`, on CUDA as the replay of a graph that was recorded for the same shapes.

    The next call overwrites what a call returned.

    Args:
        function: must not read a tensor on the host. `tensors` are copied into the graph's memory in each call; `constant` is read in place
            and must be the same object in every call; calls with another `shape` get a graph of their own.
    """

    def __init__(self, function: Callable[[dict[str, Tensor], Any, Any], Any]) -> None:
        self.function = function
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]] = {}

    def __call__(self, tensors: dict[str, Tensor], shape: Hashable, constant: Any) -> Any:
        """Return `function(tensors, shape, constant)`."""
        if next(iter(tensors.values())).device.type != "cuda":
            return self.function(tensors, shape, constant)
        key = (id(constant), shape, tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()))
        if key not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
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
