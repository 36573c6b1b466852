"""The options that never make another run: those of reporting (`REPORTING`), of the machine and of the engine (`ROUNDING`).

Two runs that differ in nothing else compute the same numbers, up to rounding. `mtl.run.identity` compares runs by that, and a
report puts them into one group.
"""

from collections.abc import Mapping
from typing import Any

REPORTING = (
    "output_dir",
    "resume",
    "name",
    "objective",
    "target_accuracy",
    "tracking",
    "write_report",
    "checkpoint_every",
    "profile",
)

ROUNDING: dict[str, tuple[str, ...]] = {
    "trainer": ("accelerator", "devices", "num_nodes", "threads"),
    "engine": ("backend", "compile", "block", "bank_memory"),
}


def identity_with_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what never makes another run; with its files, its folders of data and its number of rounds."""
    plain = {key: value for key, value in config.items() if key not in REPORTING}
    for place, names in ROUNDING.items():
        plain = without(plain, place, names)
    return plain


def without(config: dict[str, Any], place: str, names: tuple[str, ...]) -> dict[str, Any]:
    """`config` without some options of the group `place`, or of the top where it is empty."""
    if not place:
        return {key: value for key, value in config.items() if key not in names}
    options = config.get(place)
    return config | {place: without(dict(options), "", names)} if isinstance(options, Mapping) else config
