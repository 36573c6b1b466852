"""A fleet: the device of each client, and how the server treats slow and small ones."""

import bisect
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl.base.seeding import derive_seed
from mtl.devices.profiles import DeviceProfile, load_profiles

TooSmall = Literal["refuse", "skip", "shrink"]


@dataclass(frozen=True)
class Fleet:
    """Which device each client is, and what the server does about slow and small ones.

    Args:
        mix: how many clients, or which share of them, are of each device profile; None models nothing
        profiles: the user's own, a YAML file or its content
        deadline: modelled seconds after which a round ends, None for never
        wait_for: a round ends when so many clients have come back, None for all of the cohort; late clients are left out of the
            aggregation; with a larger `sampling.cohort` the cohort is over-selected
        memory: what happens to a client whose device has too little memory for a training step: refuse (an error), skip (it is never
            drawn) or shrink (it trains the largest of `widths.levels`, or of the trunks of trunk=peers, that fits)
    """

    mix: dict[str, Any] | None = None
    profiles: Any = None
    deadline: float | None = None
    wait_for: int | None = None
    memory: str = "refuse"

    def __post_init__(self) -> None:
        if self.memory not in get_args(TooSmall):
            raise ValueError(f"fleet.memory must be one of {', '.join(get_args(TooSmall))}, got {self.memory}")
        if self.mix is None:
            for name in ("profiles", "deadline", "wait_for"):
                if getattr(self, name) is not None:
                    raise ValueError(f"fleet.{name} needs devices: set fleet=mix fleet.mix={{DEVICE: SHARE, ...}}")
            if self.memory == "shrink":
                raise ValueError("fleet.memory=shrink needs devices: set fleet=mix fleet.mix={DEVICE: SHARE, ...}")
            return
        if not isinstance(self.mix, Mapping) or not self.mix:
            raise ValueError(f"fleet.mix must map device profiles to numbers or shares of clients, got {self.mix}")
        for device, share in self.mix.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < float("inf"):
                raise ValueError(f"fleet.mix.{device} must be a number or a share of clients, >= 0, got {share}")
        if self.profiles is not None and not isinstance(self.profiles, str | Mapping):
            raise ValueError(f"fleet.profiles must be a YAML file or device profiles, got {self.profiles!r}")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"fleet.deadline must be > 0 seconds, got {self.deadline}")
        if self.wait_for is not None and self.wait_for < 1:
            raise ValueError(f"fleet.wait_for must be >= 1, got {self.wait_for}")

    def assign(self, num_clients: int, *, seed: int) -> tuple[list[DeviceProfile], Tensor]:
        """Return the profiles of the mix, and the index among them of each client's profile, int64 [C].

        Counts are dealt out in a random order; shares are drawn for each client.

        Raises:
            ValueError: the mix names an unknown device, or its numbers do not add up.
        """
        assert self.mix is not None
        profiles = load_profiles(self.profiles)
        for name in self.mix:
            if name not in profiles:
                raise ValueError(f"fleet.mix has the unknown device {name}; choose from {', '.join(sorted(profiles))}")
        device = deal_out("fleet.mix", list(self.mix.values()), num_clients, seed=seed, purpose="fleet", setting=self.mix)
        return [profiles[name] for name in self.mix], device


def training_memory(profiles: Sequence[DeviceProfile], device: Tensor) -> Tensor:
    """Return the bytes that a training step of each client may take, float64 [C]. `device` is int64 [C], the index of its profile."""
    return torch.tensor([profile.memory_bytes for profile in profiles], dtype=torch.float64)[device]


def deal_out(
    name: str, shares: Sequence[float], num_clients: int, *, seed: int, purpose: str, setting: object | None = None
) -> Tensor:
    """Return the index in `shares` of each client's part, int64 [C].

    Numbers of clients are dealt out in a random order; shares are drawn for each client.

    Args:
        name: name of the option, for errors.
        shares: numbers of clients that add up to `num_clients`, or shares that add up to 1.
        num_clients: number of clients, C.
        seed: seed of the run.
        purpose: what is drawn; draws for other purposes are independent.
        setting: the option as the user set it, for errors, where that is not `shares`.

    Raises:
        ValueError: the numbers do not add up.
    """
    shares = [float(share) for share in shares]
    if sum(shares) == num_clients and all(share.is_integer() for share in shares):
        dealt = [place for place, share in enumerate(shares) for _ in range(int(share))]
        random.Random(derive_seed(seed, purpose)).shuffle(dealt)
    elif abs(sum(shares) - 1) < 1e-6:
        bounds = list(itertools.accumulate(shares))
        last = max(place for place, share in enumerate(shares) if share > 0)
        draws = (derive_seed(seed, purpose, 0, client) / 2**63 for client in range(num_clients))
        dealt = [min(bisect.bisect_right(bounds, draw), last) for draw in draws]
    else:
        raise ValueError(
            f"{name} must be whole numbers that add up to the {num_clients} clients, or shares that add up to 1, got {setting or shares}"
        )
    return torch.tensor(dealt)
