"""Codes of 1 to 16 bits, packed without gaps.

A byte holds codes that lie far apart, not neighbours: packing is then a few shifts of long
contiguous slices instead of one operation per code. Codes are packed in blocks that fit the cache,
and the bits of a code in parts of 8, 4, 2 and 1, low ones first: 5 bits are a part of 4 and one
of 1.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradguard.wire.blocks import BLOCK
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits


def code_dtype(bits: int) -> np.dtype[Any]:
    """The narrowest unsigned integers that hold codes of ``bits`` bits."""
    return np.dtype(np.uint8 if bits <= 8 else np.uint16)


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take.

    >>> packed_size(9, 3), packed_size(2**18, 5) * 8 / 2**18
    (5, 5.0)
    """
    full, rest = divmod(count, BLOCK)
    return full * BLOCK * bits // 8 + sum(-(-rest * width // 8) for width, _ in _parts(bits))


def pack(codes: Bits, bits: int, *, out: NDArray[np.uint8]) -> None:
    """Pack one block of codes into ``out``, which has ``packed_size(len(codes), bits)`` bytes."""
    at = 0
    for width, shift in _parts(bits):
        part = codes if shift == 0 and width == bits else codes >> shift & ((1 << width) - 1)
        part = part.astype(np.uint8, copy=False)
        size = -(-len(part) * width // 8)
        target = out[at : at + size]
        at += size
        if width == 1:
            target[:] = np.packbits(part, bitorder="little")
            continue
        if len(part) * width % 8:
            part = np.concatenate((part, np.zeros(size * 8 // width - len(part), np.uint8)))
        target[:] = part[:size]
        for place in range(1, 8 // width):
            target |= part[place * size : (place + 1) * size] << (place * width)


def unpack(data: NDArray[np.uint8], bits: int, *, out: Bits) -> None:
    """Fill ``out`` with the codes of one block; bits beyond the last code must be zero."""
    at, count = 0, len(out)
    for number, (width, shift) in enumerate(_parts(bits)):
        size = -(-count * width // 8)
        part = _unpacked(data[at : at + size], width)
        at += size
        if part[count:].any():
            raise WireError("packed codes must end in zero bits")
        if number == 0:
            out[:] = part[:count]
        else:
            out |= part[:count].astype(out.dtype, copy=False) << shift


def _unpacked(data: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if width == 8:
        return data
    if width == 1:
        return np.unpackbits(data, bitorder="little")
    size, mask = len(data), (1 << width) - 1
    part = np.empty(size * 8 // width, dtype=np.uint8)
    for place in range(8 // width):
        target = part[place * size : (place + 1) * size]
        np.right_shift(data, place * width, out=target)
        target &= mask
    return part


@cache
def _parts(bits: int) -> tuple[tuple[int, int], ...]:
    """Widths of the parts and where each begins."""
    parts, shift = [], 0
    for width in (8, 8, 4, 2, 1):
        if bits - shift >= width:
            parts.append((width, shift))
            shift += width
    return tuple(parts)
