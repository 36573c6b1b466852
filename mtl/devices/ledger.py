"""The modelled time and energy of a round on each client's device, from its work and its profile.

    t_down = latency + 8 bytes_down / down      t_compute = FLOPs / (efficiency peak)      t_up = latency + 8 bytes_up / up
    joules = idle (t_down + t_compute + t_up) + (compute - idle) t_compute + radio (t_down + t_up)

A link that carries nothing takes no time. What a device draws while it waits for the others is not charged to training, nor is the time
in which the server aggregates and evaluates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mtl.devices.profiles import DeviceProfile


@dataclass(frozen=True)
class Workload:
    """What a round asks of each client, float64 [C]: FLOPs; bytes down and up; bytes of memory that its training step needs."""

    flops: Tensor
    bytes_down: Tensor
    bytes_up: Tensor
    memory: Tensor

    def __len__(self) -> int:
        return len(self.flops)


@dataclass(frozen=True)
class Ledger:
    """down, compute, up: modelled seconds of each client, float64 [C]; the watts as in `DeviceProfile`, [C]."""

    down: Tensor
    compute: Tensor
    up: Tensor
    compute_watts: Tensor
    radio_watts: Tensor
    idle_watts: Tensor

    @classmethod
    def of(cls, workload: Workload, profiles: Sequence[DeviceProfile], device: Tensor) -> Self:
        """device: int64 [C], the place in `profiles` of each client's."""

        def each(field: str) -> Tensor:
            return torch.tensor([getattr(profile, field) for profile in profiles], dtype=torch.float64)[device]

        def link(num_bytes: Tensor, field: str) -> Tensor:
            return torch.where(num_bytes > 0, each("latency_seconds") + 8 * num_bytes / each(field), 0)

        return cls(
            down=link(workload.bytes_down, "down_bit_per_second"),
            compute=workload.flops / (each("efficiency") * each("peak_flop_per_second")),
            up=link(workload.bytes_up, "up_bit_per_second"),
            compute_watts=each("compute_watts"),
            radio_watts=each("radio_watts"),
            idle_watts=each("idle_watts"),
        )

    @property
    def seconds(self) -> Tensor:
        """From the broadcast to the arrival of the update."""
        return self.down + self.compute + self.up

    def joules(self, clients: Tensor, until: Tensor) -> Tensor:
        """What some clients, int64 [K], have drawn when each stops after `until` seconds, [K], or when it is done."""
        down, compute, up = self.down[clients], self.compute[clients], self.up[clients]
        in_down = torch.minimum(down, until)
        in_compute = torch.minimum(compute, (until - down).clamp_min(0))
        in_up = torch.minimum(up, (until - down - compute).clamp_min(0))
        idle = self.idle_watts[clients]
        linked = in_down + in_up
        working = (self.compute_watts[clients] - idle) * in_compute
        return idle * (linked + in_compute) + working + self.radio_watts[clients] * linked
