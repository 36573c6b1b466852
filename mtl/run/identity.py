"""What makes a later start the same run.

Two configurations are the same run where they compute the same numbers, up to rounding. So options of reporting, of the machine and of
the engine are left out of the comparison (`mtl.base.same_run`). Files are compared by their content, in the fingerprints of the
checkpoint, and not by their path (`FILES`). The number of rounds counts only where something depends on it (`needs_rounds`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mtl.base.same_run import identity_with_files, without

FILES: dict[str, tuple[str, ...]] = {
    "": ("weights", "start"),
    "distil": ("teacher",),
    "transfer": ("source",),
    "fleet": ("profiles",),
}


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that two configurations of the same run must share; see the module."""
    plain = identity_with_files(config)
    for place, names in FILES.items():
        options = plain if not place else plain.get(place)
        paths = tuple(name for name in names if isinstance(options, Mapping) and isinstance(options.get(name), str))
        plain = without(plain, place, paths)
    plain = _without_roots(plain)
    if not needs_rounds(config):
        plain.pop("rounds", None)
    return plain


def needs_rounds(config: Mapping[str, Any]) -> list[str]:
    """Return the options that make a round depend on the number of rounds."""

    def option(group: str, name: str, default: Any = None) -> Any:
        options = config.get(group)
        return options.get(name, default) if isinstance(options, Mapping) else default

    reasons = []
    if (shape := option("schedule", "shape")) != "constant":
        reasons.append(f"schedule={shape}")
    if option("prune", "kind", "nothing") == "weights":
        reasons.append("prune=weights")
    if any(value is not None for value in _values_of("defer", config.get("loss"))):
        reasons.append("loss.defer")
    if None in list(_values_of("warmup", config.get("balancer"))):
        reasons.append("balancer.warmup=null")
    varying = option("sampling", "cohort") is not None or option("sampling", "dropout", 0) or option("fleet", "mix") is not None
    if config.get("mode", "federated") in ("centralised", "detection", "single_task") and varying:
        reasons.append(f"mode={config['mode']}, which makes as many steps as the clients that come back in all rounds,")
    return reasons


def fingerprint(config: Mapping[str, Any], *data: bytes | memoryview) -> str:
    """Return the digest of a configuration's identity and of the data, which a run and its checkpoints share."""
    return digest(json.dumps(identity(config), sort_keys=True, default=str).encode(), *data)


def digest(*parts: bytes | memoryview) -> str:
    """Return the BLAKE2 digest of the parts in hexadecimal."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def _without_roots(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without the folders of data; the images are in the fingerprint."""
    rest = {key: value for key, value in config.items() if key != "root" or not isinstance(value, str)}
    return {key: _without_roots(value) if isinstance(value, Mapping) else value for key, value in rest.items()}


def _values_of(name: str, value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key == name:
                yield part
            else:
                yield from _values_of(name, part)


def differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Yield the options in which two configurations differ, with both values."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in {**left, **right}:
            yield from differences(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
    elif left != right:
        yield f"{path} ({left} there, {right} now)"
