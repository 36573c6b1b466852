"""Numbers as a table states them: `98.4 ± 1.2`, `376.4 MB`, `0.864`."""

import re
from dataclasses import dataclass

from mtl.report.tables import PREFIXES

NUMBER = re.compile(r"([+-]?\d*\.?\d+)(?:\s*±\s*(\d*\.?\d+))?\s*([kMGTP]?)([A-Za-z]*)")


@dataclass(frozen=True)
class Stated:
    """A stated number, in the unit of the metric.

    Attributes:
        text: as the table has it.
        mean: its value.
        deviation: its spread, None where none is stated.
        rounding: half a unit of the last digit, which the printed value may be off by.
    """

    text: str
    mean: float
    deviation: float | None
    rounding: float

    def verdict(self, value: float) -> str:
        """Whether a measured value is within the stated spread: inside, outside, or no spread."""
        if self.deviation is None:
            return "no spread"
        return "inside" if abs(value - self.mean) <= self.deviation + self.rounding * (1 + 1e-9) else "outside"


def parse_stated(text: object, *, scale: float, where: str) -> Stated:
    """Read a stated number.

    Args:
        text: a number, or a mean with its spread and unit.
        scale: factor from the metric to the printed number.
        where: names the field in an error.

    Raises:
        ValueError: it is no such number.
    """
    written = str(text).strip()
    match = NUMBER.fullmatch(written)
    if match is None or isinstance(text, bool):
        raise ValueError(f"{where} must be a number such as 98.4 or 98.4 ± 1.2, got {written!r}")
    mean, deviation, prefix, _ = match.groups()
    factor = 1000.0 ** PREFIXES.index(prefix) / scale
    digits = len(mean.partition(".")[2])
    return Stated(
        written,
        float(mean) * factor,
        None if deviation is None else float(deviation) * factor,
        0.5 * 10.0**-digits * factor,
    )
