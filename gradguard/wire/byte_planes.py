"""Floating-point values with their exponents compressed.

The values that survive a selection are of similar magnitude, so their exponents are few. Turned
left by one bit, the byte on top of a float32 is its exponent, and the sign lies at the bottom
with the mantissa, where nothing can be saved.
"""

from __future__ import annotations

import numpy as np

from gradguard.wire.compression import read_section, section
from gradguard.wire.formats import Bits, Format
from gradguard.wire.reader import Reader


def encode_planes(bits: Bits, fmt: Format, *, portable: bool) -> bytes:
    """One section per byte of a value, low bytes first."""
    width = 8 * fmt.size
    turned = bits << 1 | bits >> (width - 1)
    planes = turned.astype(fmt.bits, copy=False).view(np.uint8).reshape(-1, fmt.size)
    return b"".join(
        section(np.ascontiguousarray(planes[:, place]), portable=portable)
        for place in range(fmt.size)
    )


def decode_planes(reader: Reader, fmt: Format, *, count: int) -> Bits:
    """``count`` values."""
    planes = np.empty((count, fmt.size), dtype=np.uint8)
    for place in range(fmt.size):
        stored = read_section(reader, size=count, what="a plane of values")
        planes[:, place] = np.frombuffer(stored, dtype=np.uint8)
    turned = planes.reshape(-1).view(fmt.bits)
    return turned >> 1 | turned << (8 * fmt.size - 1)
