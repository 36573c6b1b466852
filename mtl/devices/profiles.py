"""Device profiles: a class of hardware in ten numbers, from YAML. `devices.yaml` next to this file has the built-in ones.

A profile is a mapping of fields, each a number or `{value: number, source: where it is from}`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class DeviceProfile:
    """A class of hardware.

    Attributes:
        name: name of the device.
        peak_flop_per_second: in single precision, FLOP = 2 MAC.
        efficiency: share of the peak that training reaches, in (0, 1].
        down_bit_per_second: bandwidth to the device.
        up_bit_per_second: bandwidth from the device.
        latency_seconds: latency of a message.
        compute_watts: power of the whole device while it computes.
        radio_watts: additional power while the link is in use.
        idle_watts: power of the whole device while it is awake and idle.
        memory_bytes: memory that a training step may take.
    """

    name: str
    peak_flop_per_second: float
    efficiency: float
    down_bit_per_second: float
    up_bit_per_second: float
    latency_seconds: float
    compute_watts: float
    radio_watts: float
    idle_watts: float
    memory_bytes: float

    def __post_init__(self) -> None:
        for field in ("peak_flop_per_second", "down_bit_per_second", "up_bit_per_second", "compute_watts", "memory_bytes"):
            self._require(field, getattr(self, field) > 0, "> 0")
        for field in ("latency_seconds", "radio_watts", "idle_watts"):
            self._require(field, getattr(self, field) >= 0, ">= 0")
        self._require("efficiency", 0 < self.efficiency <= 1, "in (0, 1]")
        self._require("idle_watts", self.idle_watts <= self.compute_watts, f"at most compute_watts, {self.compute_watts:g}")

    def _require(self, field: str, fine: bool, must_be: str) -> None:
        if not fine or getattr(self, field) == float("inf"):
            raise ValueError(f"device {self.name}: {field} must be finite and {must_be}, got {getattr(self, field):g}")


FIELDS = tuple(field.name for field in fields(DeviceProfile) if field.name != "name")


def load_profiles(custom: str | Mapping[str, Any] | None = None) -> dict[str, DeviceProfile]:
    """Return the built-in device profiles and the user's, by name; the user's take precedence.

    Args:
        custom: the user's profiles, a YAML file or its content.

    Raises:
        ValueError: a profile or a field is wrong; the message names it.
    """
    if custom is None:
        return dict(_built_in())
    if isinstance(custom, str):
        return _built_in() | _read(_load(Path(custom).expanduser()), custom)
    return _built_in() | _read(custom, "fleet.profiles")


@functools.cache
def _built_in() -> dict[str, DeviceProfile]:
    file = resources.files("mtl.devices") / "devices.yaml"
    return _read(yaml.safe_load(file.read_text(encoding="utf-8")), file.name)


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"fleet.profiles must be a YAML file of device profiles, got {path}: {error}") from error


def _read(content: Any, source: str) -> dict[str, DeviceProfile]:
    if not isinstance(content, Mapping) or not all(isinstance(entry, Mapping) for entry in content.values()):
        raise ValueError(f"{source} must map names of devices to their fields, got {content!r:.80}")
    return {str(name): _profile(str(name), entry) for name, entry in content.items()}


def _profile(name: str, entry: Mapping[str, Any]) -> DeviceProfile:
    unknown = [str(field) for field in entry if field not in FIELDS]
    if unknown:
        raise ValueError(f"device {name} has the unknown field {unknown[0]}; the fields are {', '.join(FIELDS)}")
    missing = [field for field in FIELDS if field not in entry]
    if missing:
        raise ValueError(f"device {name} lacks {', '.join(missing)}")
    return DeviceProfile(name, **{field: _number(name, field, entry[field]) for field in FIELDS})


def _number(name: str, field: str, entry: Any) -> float:
    value = entry.get("value") if isinstance(entry, Mapping) else entry
    try:
        if isinstance(value, bool):
            raise TypeError
        # YAML 1.1 reads 1e9 as a string.
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"device {name}: {field} must be a number or {{value: number, source: text}}, got {entry!r}") from None
