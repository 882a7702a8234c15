"""Values as they are: what nothing shorter fits."""

from __future__ import annotations

import numpy as np

from gradguard.wire.formats import Bits, Format, Parts
from gradguard.wire.reader import Reader
from gradguard.wire.sample import Sample

TAG, NAME = 0, "raw"


def estimate(sample: Sample) -> float | None:
    """Bits a value."""
    return 8.0 * sample.fmt.size


def encode(sample: Sample, *, bits: float) -> Parts | None:
    """The values, low bytes first."""
    return [np.ascontiguousarray(sample.whole, dtype=sample.fmt.bits).view(np.uint8).data]


def decode(reader: Reader, fmt: Format, *, out: Bits) -> None:
    """Fill ``out`` with the values."""
    out[:] = np.frombuffer(reader.take(out.nbytes, what="a list of values"), dtype=fmt.bits)
