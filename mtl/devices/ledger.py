"""The modelled time and energy of a round on each client's device, from its work and its profile.

    t_down = latency + 8 bytes_down / down      t_compute = FLOPs / (efficiency peak)      t_up = latency + 8 bytes_up / up
    joules = idle (t_down + t_compute + t_up) + (compute - idle) t_compute + radio (t_down + t_up)

A message of no bytes takes no time. The energy that a device uses while it waits for others is not counted, nor is the time in which the
server aggregates and evaluates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mtl.devices.profiles import DeviceProfile


@dataclass(frozen=True)
class Workload:
    """The work of each client in a round, float64 [C] each.

    Attributes:
        flops: FLOPs of the local training.
        bytes_down: bytes sent to the client.
        bytes_up: bytes that the client sends.
        memory: bytes of memory that a training step needs.
    """

    flops: Tensor
    bytes_down: Tensor
    bytes_up: Tensor
    memory: Tensor

    def __len__(self) -> int:
        return len(self.flops)


@dataclass(frozen=True)
class Ledger:
    """The modelled time and power of each client in a round, float64 [C] each.

    Attributes:
        down: seconds of the download.
        compute: seconds of the local training.
        up: seconds of the upload.
        compute_watts: as in `DeviceProfile`.
        radio_watts: as in `DeviceProfile`.
        idle_watts: as in `DeviceProfile`.
    """

    down: Tensor
    compute: Tensor
    up: Tensor
    compute_watts: Tensor
    radio_watts: Tensor
    idle_watts: Tensor

    @classmethod
    def of(cls, workload: Workload, profiles: Sequence[DeviceProfile], device: Tensor) -> Self:
        """Return the ledger of a workload. `device` is int64 [C], the index in `profiles` of per_client client's device."""

        def per_client(field: str) -> Tensor:
            return torch.tensor([getattr(profile, field) for profile in profiles], dtype=torch.float64)[device]

        def link(num_bytes: Tensor, field: str) -> Tensor:
            return torch.where(num_bytes > 0, per_client("latency_seconds") + 8 * num_bytes / per_client(field), 0)

        return cls(
            down=link(workload.bytes_down, "down_bit_per_second"),
            compute=workload.flops / (per_client("efficiency") * per_client("peak_flop_per_second")),
            up=link(workload.bytes_up, "up_bit_per_second"),
            compute_watts=per_client("compute_watts"),
            radio_watts=per_client("radio_watts"),
            idle_watts=per_client("idle_watts"),
        )

    @property
    def seconds(self) -> Tensor:
        """Seconds from the broadcast to the arrival of the update, float64 [C]."""
        return self.down + self.compute + self.up

    def joules(self, clients: Tensor, until: Tensor) -> Tensor:
        """Return the energy that some clients have used, float64 [K].

        Args:
            clients: int64 [K].
            until: [K], seconds after which each stops, if it is not done before.
        """
        down, compute, up = self.down[clients], self.compute[clients], self.up[clients]
        in_down = torch.minimum(down, until)
        in_compute = torch.minimum(compute, (until - down).clamp_min(0))
        in_up = torch.minimum(up, (until - down - compute).clamp_min(0))
        idle = self.idle_watts[clients]
        linked = in_down + in_up
        working = (self.compute_watts[clients] - idle) * in_compute
        return idle * (linked + in_compute) + working + self.radio_watts[clients] * linked
