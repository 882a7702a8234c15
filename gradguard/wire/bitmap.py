"""Which values are sent, as one bit for each; shorter than indices from one value in eight on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gradguard.scratch import scratch
from gradguard.wire.bit_packing import BLOCK
from gradguard.wire.compression import read_section, section
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits
from gradguard.wire.reader import Reader


def nonzero_mask(block: Bits) -> NDArray[np.bool_]:
    """Which values of a block are not zero, in memory that the next call uses again."""
    mask: NDArray[np.bool_] = scratch("wire.mask", len(block), torch.bool).numpy()
    np.not_equal(block, 0, out=mask)
    return mask


def encode_bitmap(bits: Bits, *, portable: bool) -> tuple[bytes, Bits]:
    """The bitmap, and the values that are not zero."""
    packed = np.empty(-(-len(bits) // 8), dtype=np.uint8)
    kept = []
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        mask = nonzero_mask(block)
        packed[start // 8 : (start + BLOCK) // 8] = np.packbits(mask, bitorder="little")
        kept.append(block[mask])
    return section(packed, portable=portable), np.concatenate(kept)


def decode_bitmap(reader: Reader, *, size: int) -> NDArray[np.bool_]:
    """For each of ``size`` values whether it is sent."""
    stored = read_section(reader, size=-(-size // 8), what="a bitmap")
    flags = np.unpackbits(np.frombuffer(stored, dtype=np.uint8), bitorder="little")
    if flags[size:].any():
        raise WireError("a bitmap must end in zero bits")
    return flags[:size].view(np.bool_)
