"""What a small sample of a tensor's values tells of all of them, each thing found out once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gradguard.wire.formats import FLOAT32, FLOAT64, Bits, Format

_FEW, _MANY = 256, 1024  # values of a short and of a long tensor that are looked at
_LONG = 2**17


@dataclass(frozen=True)
class Sample:
    """Some of the values of ``whole``.

    What follows from it is a guess: an encoder that acts on it looks at every value.
    """

    values: Bits
    whole: Bits
    fmt: Format

    @staticmethod
    def of(whole: Bits, fmt: Format) -> Sample:
        """Values from all over a tensor."""
        # An odd stride: rows have an even length as a rule, and a column is no fair sample.
        sampled = _MANY if len(whole) >= _LONG else _FEW
        return Sample(whole[:: len(whole) // sampled | 1], whole, fmt)

    @cached_property
    def nonzero(self) -> Sample:
        """The values of the sample that are not zero."""
        return Sample(self.values[self.values != 0], self.whole, self.fmt)

    @cached_property
    def _first(self) -> tuple[Bits, Any]:
        """The values in order, and which of them differ from the one before."""
        ordered = np.sort(self.values)
        first = np.empty(len(ordered) + 1, dtype=bool)
        first[0] = first[-1] = True
        np.not_equal(ordered[1:], ordered[:-1], out=first[1:-1])
        return ordered, first

    @cached_property
    def distinct(self) -> Bits:
        """The distinct values, in rising order of their bits."""
        ordered, first = self._first
        found: Bits = ordered[first[:-1]]
        return found

    @cached_property
    def singles(self) -> int:
        """Values that occur once."""
        _, first = self._first
        return int(np.count_nonzero(first[1:] & first[:-1])) if len(self.values) else 0

    @cached_property
    def low_bits(self) -> int:
        """How many of the lowest bits are zero in every value."""
        used = int(np.bitwise_or.reduce(self.values)) if len(self.values) else 0
        return (used & -used).bit_length() - 1 if used else 8 * self.fmt.size

    @cached_property
    def largest(self) -> Any:
        """The largest magnitude of *all* values, or ``None`` if it is zero or not finite."""
        if self.fmt not in (FLOAT32, FLOAT64) or not len(self.whole):
            return None
        # By torch, which finds both at once and on all threads; NaN if there is one.
        low, high = torch.aminmax(torch.from_numpy(self.whole.view(self.fmt.numbers)))
        top = torch.maximum(-low, high).numpy()[()]
        return top if 0 < top < np.inf else None
