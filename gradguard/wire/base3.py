"""Three-valued codes, five in a byte: 1.6 bits a code, where their entropy is at most 1.585."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradguard.wire.blocks import BLOCK
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits

_DIGITS = 5  # 3**5 = 243 of 256


def packed_size(count: int) -> int:
    """Bytes that ``count`` codes take, in the same blocks as other codes."""
    full, rest = divmod(count, BLOCK)
    return full * -(-BLOCK // _DIGITS) + -(-rest // _DIGITS)


def pack(codes: Bits, *, out: NDArray[np.uint8]) -> None:
    """Pack one block of codes 0, 1 and 2; digits of one byte lie far apart in the block."""
    size = len(out)
    padded = np.concatenate((codes, np.zeros(size * _DIGITS - len(codes), np.uint8)))
    out[:] = padded[(_DIGITS - 1) * size :]
    for digit in range(_DIGITS - 2, -1, -1):
        out *= 3
        out += padded[digit * size : (digit + 1) * size]


def unpack(data: NDArray[np.uint8], *, out: Bits) -> None:
    """Fill ``out`` with the codes of one block; digits beyond the last code must be zero."""
    size, rest = len(data), data
    if size and data.max() >= 3**_DIGITS:
        raise WireError(f"five digits of base 3 are at most {3**_DIGITS - 1}, got {data.max()}")
    codes = np.empty(size * _DIGITS, dtype=np.uint8)
    for digit in range(_DIGITS):
        higher = rest // np.uint8(3)
        np.subtract(rest, higher * np.uint8(3), out=codes[digit * size : (digit + 1) * size])
        rest = higher
    if codes[len(out) :].any():
        raise WireError("digits of base 3 must end in zeros")
    out[:] = codes[: len(out)]
