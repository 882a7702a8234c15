"""Values on an even grid: a scale, and for each value the number of its step.

The grid of ``b`` bits has ``s = 2**(b - 1) - 1`` steps on either side of zero. The value of step
``i`` is ``i / s * largest``, the division first, each operation rounded once. Multiplying by
``largest / s`` would be quicker and gives other bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradguard.wire.bit_packing import BLOCK, code_dtype, pack, packed_size, unpack
from gradguard.wire.errors import WireError
from gradguard.wire.formats import FLOAT32, FLOAT64, Bits, Format, Parts
from gradguard.wire.reader import Reader

TAG, NAME = 3, "grid"
_WIDTHS = range(2, 17)
_PROBED = 32


def estimate(sample: Bits, fmt: Format, *, whole: Bits) -> float | None:
    """Bits a value, if the sample lies on a grid that the largest of all values spans."""
    ordered = np.sort(sample)
    if len(sample) > _PROBED and (ordered[1:] != ordered[:-1]).all():
        return None  # free numbers hardly ever repeat; spares them the search for the largest
    bits = _bits(sample, fmt, _largest(whole, fmt))
    return None if bits is None else float(bits)


def encode(bits: Bits, fmt: Format) -> Parts | None:
    """Bits of a code, the largest magnitude, and every value's code: its step plus ``s``."""
    largest = _largest(bits, fmt)
    width = _bits(bits[:: max(1, len(bits) // 1024)], fmt, largest)
    if largest is None or width is None:
        return None
    out = np.empty(packed_size(len(bits), width), dtype=np.uint8)
    at = 0
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        codes = _codes(block, fmt, largest, width)
        if codes is None:
            return None
        end = at + packed_size(len(block), width)
        pack(codes, width, out=out[at:end])
        at = end
    parts: Parts = [bytes((width,)), largest.tobytes(), out.data]
    return parts if 1 + fmt.size + len(out) < bits.nbytes else None


def decode(reader: Reader, fmt: Format, *, out: Bits) -> None:
    """Fill ``out`` with the values."""
    width = reader.byte(what="the bits of a grid")
    if fmt not in (FLOAT32, FLOAT64) or width not in _WIDTHS:
        raise WireError(f"a grid has 2 to 16 bits of float32 or float64, got {width} of {fmt.name}")
    largest = np.frombuffer(reader.take(fmt.size, what="the scale of a grid"), fmt.numbers)[0]
    data = np.frombuffer(
        reader.take(packed_size(len(out), width), what="packed codes"), dtype=np.uint8
    )
    codes = np.empty(min(BLOCK, len(out)), dtype=code_dtype(width))
    steps, at = _steps(width), 0
    for start in range(0, len(out), BLOCK):
        block = out[start : start + BLOCK].view(fmt.numbers)
        here, end = codes[: len(block)], at + packed_size(len(block), width)
        unpack(data[at:end], width, out=here)
        if here.max() > 2 * steps:
            raise WireError(f"a grid of {width} bits has codes up to {2 * steps}, got {here.max()}")
        block[:] = here
        block -= fmt.numbers.type(steps)
        _place(block, steps, largest, out=block)
        at = end


def _place(levels: Any, steps: int, largest: Any, *, out: Any) -> None:
    with np.errstate(all="ignore"):
        np.divide(levels, levels.dtype.type(steps), out=out)
        np.multiply(out, largest, out=out)


def _codes(block: Bits, fmt: Format, largest: Any, width: int) -> Bits | None:
    steps, values = _steps(width), block.view(fmt.numbers)
    kind = values.dtype.type
    with np.errstate(all="ignore"):
        levels = values * kind(steps / float(largest))
        np.rint(levels, out=levels)
    levels += kind(0)  # -0.0 becomes 0.0
    placed = np.empty_like(levels)
    _place(levels, steps, largest, out=placed)
    if not np.array_equal(placed.view(fmt.bits), block):
        return None
    levels += kind(steps)
    codes: Bits = levels.astype(code_dtype(width))
    return codes


def _largest(bits: Bits, fmt: Format) -> Any:
    if fmt not in (FLOAT32, FLOAT64) or not len(bits):
        return None
    top = None
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK].view(fmt.numbers)
        here = max(block.max(), -block.min())
        top = here if top is None or not here <= top else top
    return top if top is not None and 0 < top < np.inf else None


def _bits(sample: Bits, fmt: Format, largest: Any) -> int | None:
    """The fewest bits whose grid holds the sample."""
    if largest is None:
        return None
    values = sample[:: max(1, len(sample) // _PROBED)][:, None].view(fmt.numbers)
    steps = np.array([_steps(width) for width in _WIDTHS], dtype=values.dtype)
    with np.errstate(all="ignore"):
        levels = np.rint(values * (steps / largest)) + values.dtype.type(0)
        placed = levels / steps * largest
    fits = (placed.view(fmt.bits) == values.view(fmt.bits)).all(axis=0)
    for width in np.flatnonzero(fits) + _WIDTHS.start:
        if _codes(sample, fmt, largest, int(width)) is not None:
            return int(width)
    return None


def _steps(width: int) -> int:
    return (1 << width - 1) - 1
