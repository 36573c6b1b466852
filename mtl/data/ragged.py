"""Index tensors of unequal length in one tensor, such as the images of each of many clients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Index tensors of unequal length in one tensor.

    Attributes:
        values: int64 [sum of the lengths].
        starts: C + 1 places in it, so that part c is values[starts[c]:starts[c + 1]].
    """

    values: Tensor
    starts: tuple[int, ...]

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Self:
        """Join index tensors."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part))
        return cls(torch.cat(list(parts)), tuple(starts))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, place: int) -> Tensor:
        if not 0 <= place < len(self):
            raise IndexError(f"place must be in [0, {len(self) - 1}], got {place}")
        return self.values[self.starts[place] : self.starts[place + 1]]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def size(self, place: int) -> int:
        """The length of one part."""
        return self.starts[place + 1] - self.starts[place]

    @property
    def sizes(self) -> list[int]:
        """The lengths of all parts."""
        return [after - before for before, after in zip(self.starts, self.starts[1:], strict=False)]

    def to(self, device: torch.device) -> Self:
        """A copy on `device`."""
        return type(self)(self.values.to(device), self.starts)
