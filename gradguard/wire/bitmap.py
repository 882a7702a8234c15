"""Which values are sent, as one bit for each; shorter than indices from one value in eight on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradguard.wire.blocks import blocks, buffer
from gradguard.wire.compression import read_section, section
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits
from gradguard.wire.reader import Reader


def nonzero_mask(block: Bits) -> NDArray[np.bool_]:
    """Which values of a block are not zero, in memory that the next call uses again."""
    mask = buffer("mask", len(block), bool)
    np.not_equal(block, 0, out=mask)
    return mask


def encode_bitmap(bits: Bits, *, portable: bool) -> tuple[bytes, Bits]:
    """The bitmap, and the values that are not zero."""
    packed = np.empty(-(-len(bits) // 8), dtype=np.uint8)
    kept = []
    for at in blocks(len(bits)):
        mask = nonzero_mask(bits[at])
        packed[at.start // 8 : -(-at.stop // 8)] = np.packbits(mask, bitorder="little")
        kept.append(bits[at][mask])
    return section(packed, portable=portable), np.concatenate(kept)


def decode_bitmap(reader: Reader, *, size: int) -> NDArray[np.bool_]:
    """For each of ``size`` values whether it is sent."""
    stored = read_section(reader, size=-(-size // 8), what="a bitmap")
    flags = np.unpackbits(np.frombuffer(stored, dtype=np.uint8), bitorder="little")
    if flags[size:].any():
        raise WireError("a bitmap must end in zero bits")
    return flags[:size].view(np.bool_)
