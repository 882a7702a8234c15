"""Values on an even grid: a scale, and for each value the number of its step.

The grid of ``b`` bits has ``s = 2**(b - 1) - 1`` steps on either side of zero. The value of step
``i`` is ``i / s * largest``, the division first, each operation rounded once. Multiplying by
``largest / s`` would be quicker and gives other bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradguard.scratch import scratch
from gradguard.wire.bit_packing import BLOCK, code_dtype, pack, packed_size, unpack
from gradguard.wire.errors import WireError
from gradguard.wire.formats import FLOAT32, FLOAT64, Bits, Format, Parts
from gradguard.wire.reader import Reader
from gradguard.wire.sample import Sample

TAG, NAME = 3, "grid"
_WIDTHS = range(2, 17)
_PROBED = 32


def estimate(sample: Sample) -> float | None:
    """Bits a value, if the sample lies on a grid that the largest of all values spans."""
    if len(sample.values) > _PROBED and len(sample.distinct) == len(sample.values):
        return None  # free numbers hardly ever repeat; spares them the search for the largest
    bits = _bits(sample)
    return None if bits is None else float(bits)


def encode(sample: Sample) -> Parts | None:
    """Bits of a code, the largest magnitude, and every value's code: its step plus ``s``."""
    whole, width = sample.whole, _bits(sample)
    if width is None:
        return None
    out = np.empty(packed_size(len(whole), width), dtype=np.uint8)
    at = 0
    for start in range(0, len(whole), BLOCK):
        block = whole[start : start + BLOCK]
        codes = _codes(block, sample.fmt, sample.largest, width)
        if codes is None:
            return None
        end = at + packed_size(len(block), width)
        pack(codes, width, out=out[at:end])
        at = end
    parts: Parts = [bytes((width,)), sample.largest.tobytes(), out.data]
    return parts if 1 + sample.fmt.size + len(out) < whole.nbytes else None


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
    """The codes of a block, in memory that the next call uses again."""
    steps, values, kind = _steps(width), block.view(fmt.numbers), fmt.numbers.type
    levels, placed = (
        scratch(f"wire.{name}", len(block), fmt.dtype).numpy() for name in ("levels", "placed")
    )
    with np.errstate(all="ignore"):
        np.multiply(values, kind(steps / float(largest)), out=levels)
    np.rint(levels, out=levels)
    levels += kind(0)  # -0.0 becomes 0.0
    _place(levels, steps, largest, out=placed)
    if not np.array_equal(placed.view(fmt.bits), block):
        return None
    levels += kind(steps)
    codes: Bits = placed.view(code_dtype(width))[: len(block)]
    np.copyto(codes, levels, casting="unsafe")
    return codes


def _bits(sample: Sample) -> int | None:
    """The fewest bits whose grid holds the sample."""
    if not len(sample.values) or sample.largest is None:
        return None
    few = sample.values[:: max(1, len(sample.values) // _PROBED)]
    values = few.view(sample.fmt.numbers)[:, None]
    steps = np.array([_steps(width) for width in _WIDTHS], dtype=values.dtype)
    with np.errstate(all="ignore"):
        levels = np.rint(values * (steps / sample.largest)) + values.dtype.type(0)
        placed = levels / steps * sample.largest
    fits = (placed.view(sample.fmt.bits) == few[:, None]).all(axis=0)
    for width in np.flatnonzero(fits).tolist():
        if _codes(sample.values, sample.fmt, sample.largest, _WIDTHS[width]) is not None:
            return _WIDTHS[width]
    return None


def _steps(width: int) -> int:
    return (1 << width - 1) - 1
