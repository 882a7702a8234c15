"""Values as they are: what nothing shorter fits."""

from __future__ import annotations

import numpy as np

from gradguard.wire.formats import Bits, Format, Parts
from gradguard.wire.reader import Reader

TAG, NAME = 0, "raw"


def estimate(sample: Bits, fmt: Format, *, whole: Bits) -> float | None:
    """Bits a value."""
    return 8.0 * fmt.size


def encode(bits: Bits, fmt: Format) -> Parts | None:
    """The values, low bytes first."""
    return [np.ascontiguousarray(bits, dtype=fmt.bits).view(np.uint8).data]


def decode(reader: Reader, fmt: Format, *, out: Bits) -> None:
    """Fill ``out`` with the values."""
    out[:] = np.frombuffer(reader.take(out.nbytes, what="a list of values"), dtype=fmt.bits)
