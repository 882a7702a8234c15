"""Which values are sent, as one bit for each; shorter than indices from one value in eight on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradguard.wire.blocks import blocks, buffer
from gradguard.wire.compression import read_section, section
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits, Format
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


def encode_signed_bitmap(bits: Bits, *, portable: bool) -> tuple[bytes, bytes, Bits]:
    """The bitmap, the signs of the zeros, and the values that are neither 0.0 nor -0.0."""
    packed = np.empty(-(-len(bits) // 8), dtype=np.uint8)
    kept, signs = [], []
    for at in blocks(len(bits)):
        block = bits[at]
        mask = nonzero_mask(block << 1)
        packed[at.start // 8 : -(-at.stop // 8)] = np.packbits(mask, bitorder="little")
        kept.append(block[mask])
        np.logical_not(mask, out=mask)
        signs.append(block[mask] != 0)
    together = np.packbits(np.concatenate(signs), bitorder="little")
    found = section(packed, portable=portable), section(together, portable=portable)
    return *found, np.concatenate(kept)


def decode_signed_zeros(reader: Reader, fmt: Format, *, where: NDArray[np.bool_]) -> Bits:
    """A whole tensor of 0.0 and -0.0; those for which ``where`` is set are yet to come."""
    if not fmt.signed_zero:
        raise WireError(f"{fmt.name} has no sign of zero to be sent")
    zeros = ~where
    signs = decode_bitmap(reader, size=int(np.count_nonzero(zeros)))
    bits = np.zeros(len(where), dtype=fmt.bits)
    bits[zeros] = signs
    bits <<= 8 * fmt.size - 1
    return bits


def decode_bitmap(reader: Reader, *, size: int) -> NDArray[np.bool_]:
    """For each of ``size`` values whether it is sent."""
    stored = read_section(reader, size=-(-size // 8), what="a bitmap")
    flags = np.unpackbits(np.frombuffer(stored, dtype=np.uint8), bitorder="little")
    if flags[size:].any():
        raise WireError("a bitmap must end in zero bits")
    return flags[:size].view(np.bool_)
