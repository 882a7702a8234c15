"""Values that a narrower dtype holds exactly: what a cast leaves behind."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from gradguard.wire.blocks import blocks, buffer
from gradguard.wire.errors import WireError
from gradguard.wire.formats import (
    BFLOAT16,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    Bits,
    Format,
    Parts,
    format_by_code,
)
from gradguard.wire.reader import Reader, varint
from gradguard.wire.sample import Sample

TAG, NAME = 1, "narrowed"
_NARROWER: dict[Format, tuple[Format, ...]] = {
    FLOAT64: (FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, BFLOAT16, FLOAT32),
    FLOAT32: (FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, BFLOAT16),
    INT64: (INT8, INT16, INT32),
    INT32: (INT8, INT16),
    INT16: (INT8,),
}
# Low bits of the mantissa that the widest of the narrower dtypes has no room for.
_FREE_BITS = {FLOAT64: 52 - 23, FLOAT32: 23 - 10}
# Magnitudes, turned left by one bit: infinity, and the least normal float32 as a float64.
_INFINITY = {FLOAT32: 0xFF << 24, FLOAT64: 0x7FF << 53}
_LEAST = (1023 - 126) << 53


def estimate(sample: Sample) -> float | None:
    """Bits a value, of the narrowest dtype that holds the sample."""
    narrow = _narrowest(sample)
    return None if narrow is None else 8.0 * narrow.size


def encode(sample: Sample, *, bits: float) -> Parts | None:
    """The number of the narrower dtype and the values in it."""
    whole, fmt = sample.whole, sample.fmt
    for narrow in _NARROWER[fmt]:
        if 8 * narrow.size < bits:
            continue
        out = np.empty(len(whole), dtype=narrow.bits)
        for at in blocks(len(whole)):
            found = _narrowed(whole[at], fmt, narrow)
            if found is None:
                break
            out[at] = found
        else:
            return [varint(narrow.code), out.view(np.uint8).data]
    return None


def decode(reader: Reader, fmt: Format, *, out: Bits) -> None:
    """Fill ``out`` with the values, widened."""
    narrow = format_by_code(reader.byte(what="a narrower dtype"))
    if narrow not in _NARROWER.get(fmt, ()):
        raise WireError(f"{fmt.name} is never narrowed to {narrow.name}")
    data = reader.take(len(out) * narrow.size, what="a list of narrowed values")
    values = np.frombuffer(data, dtype=narrow.bits)
    for at in blocks(len(out)):
        out[at] = _wide(values[at], narrow, fmt)
        if narrow.dtype.is_floating_point and not _repeats(out[at], narrow, fmt):
            raise WireError(f"{narrow.name} for {fmt.name} must hold neither NaN nor subnormals")


def _narrowest(sample: Sample) -> Format | None:
    fmt = sample.fmt
    if fmt.dtype.is_floating_point and sample.low_bits < _FREE_BITS.get(fmt, 0):
        return None  # the mantissa is longer than any that is narrower
    for narrow in _NARROWER.get(fmt, ()):
        if _narrowed(sample.values, fmt, narrow) is not None:
            return narrow
    return None


def _narrowed(bits: Bits, fmt: Format, narrow: Format) -> Bits | None:
    """The values in the narrower dtype, if widening gives them back on every machine."""
    if fmt == FLOAT32 and narrow == BFLOAT16:  # the upper half of the bits
        part = buffer("half", len(bits), np.uint32)
        np.bitwise_and(bits, 0xFFFF, out=part)
        return None if part.any() else np.right_shift(bits, 16, out=part)
    if narrow.dtype.is_floating_point and not _repeats(bits, narrow, fmt):
        return None
    found = _narrow(bits, fmt, narrow)
    return found if np.array_equal(_wide(found, narrow, fmt), bits) else None


def _repeats(wide: Bits, narrow: Format, fmt: Format) -> bool:
    """Whether every machine widens and narrows these values alike.

    Machines differ in what becomes of the payload of a NaN, and some can be told to take a
    subnormal float32 for zero. This may be such a one, so bits are looked at and not numbers.
    """
    if fmt == FLOAT32 and narrow == BFLOAT16:  # by its bits
        return True
    magnitude, infinity = wide << 1, _INFINITY[fmt]
    if fmt == FLOAT64 and ((magnitude < _LEAST) & (magnitude != 0)).any():
        return False
    return not bool((magnitude > infinity).any())


def _narrow(bits: Bits, fmt: Format, narrow: Format) -> Bits:
    """The values in the narrower dtype, rounded if they must be."""
    found: Bits
    if narrow == BFLOAT16:
        found = (_in_float32(bits, fmt) >> 16).astype(np.uint16)
    elif narrow in (FLOAT8_E4M3FN, FLOAT8_E5M2):
        found = _float8_by_bfloat16(narrow)[_in_float32(bits, fmt) >> 16]
    else:
        found = bits.view(fmt.numbers).astype(narrow.numbers).view(narrow.bits)
    return found


def _wide(bits: Bits, narrow: Format, fmt: Format) -> Bits:
    """The values in the wider dtype; exact, but for NaN, which no encoder narrows."""
    if narrow == BFLOAT16:
        return _from_float32(bits.astype(np.uint32) << 16, fmt)
    if narrow in (FLOAT8_E4M3FN, FLOAT8_E5M2):
        return _from_float32(_float32_by_float8(narrow)[bits], fmt)
    return bits.view(narrow.numbers).astype(fmt.numbers).view(fmt.bits)


def _in_float32(bits: Bits, fmt: Format) -> Bits:
    return bits if fmt == FLOAT32 else bits.view(np.float64).astype(np.float32).view(np.uint32)


def _from_float32(bits: Bits, fmt: Format) -> Bits:
    return bits if fmt == FLOAT32 else bits.view(np.float32).astype(np.float64).view(np.uint64)


@cache
def _float32_by_float8(narrow: Format) -> NDArray[np.uint32]:
    every = torch.arange(256, dtype=torch.uint8, device="cpu").view(narrow.dtype)
    return every.float().view(torch.int32).numpy().view(np.uint32)


@cache
def _float8_by_bfloat16(narrow: Format) -> NDArray[np.uint8]:
    """For the high half of a float32 that float8 holds, the float8; for any other, some number."""
    table = np.zeros(2**16, dtype=np.uint8)
    table[_float32_by_float8(narrow) >> 16] = np.arange(256)
    return table
