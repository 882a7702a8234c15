"""Values on an even grid: a scale, and for each value the number of its step.

The grid of ``b`` bits has ``s = 2**(b - 1) - 1`` steps on either side of zero. The value of step
``i`` is ``i / s * largest``, the division first, each operation rounded once. Multiplying by
``largest / s`` would be quicker and gives other bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradguard.wire.bit_packing import code_dtype, pack, packed_size, unpack
from gradguard.wire.blocks import BLOCK, blocks, buffer
from gradguard.wire.errors import WireError
from gradguard.wire.formats import FLOAT32, FLOAT64, Bits, Format, Parts
from gradguard.wire.reader import Reader
from gradguard.wire.sample import Sample

TAG, NAME = 3, "grid"
_WIDTHS = range(2, 17)
_STEPS = {width: 2 ** (width - 1) - 1 for width in _WIDTHS}
_PROBED = 32
_ROOM = {FLOAT32: 1.5 * 2**23, FLOAT64: 1.5 * 2**52}
# Of the scale: no step of a grid is then so small that some machines take it for zero.
_LEAST = {FLOAT32: 2.0 ** (-126 + 16), FLOAT64: 2.0 ** (-1022 + 16)}


def estimate(sample: Sample) -> float | None:
    """Bits a value, if the sample lies on a grid that the largest of all values spans."""
    if len(sample.values) > _PROBED and len(sample.distinct) == len(sample.values):
        return None  # free numbers hardly ever repeat; spares them the search for the largest
    bits = _bits(sample)
    return None if bits is None else float(bits)


def encode(sample: Sample, *, bits: float) -> Parts | None:
    """Bits of a code, the largest magnitude, and every value's code: its step plus ``s``."""
    whole, width = sample.whole, int(bits)
    out = np.empty(packed_size(len(whole), width), dtype=np.uint8)
    start = 0
    for at in blocks(len(whole)):
        codes = _codes(whole[at], sample.fmt, sample.largest, width)
        if codes is None:
            return None
        end = start + packed_size(len(codes), width)
        pack(codes, width, out=out[start:end])
        start = end
    parts: Parts = [bytes((width,)), sample.largest.tobytes(), out.data]
    return parts if 1 + sample.fmt.size + len(out) < whole.nbytes else None


def decode(reader: Reader, fmt: Format, *, out: Bits) -> None:
    """Fill ``out`` with the values."""
    width = reader.byte(what="the bits of a grid")
    if fmt not in (FLOAT32, FLOAT64) or width not in _WIDTHS:
        raise WireError(f"a grid has 2 to 16 bits of float32 or float64, got {width} of {fmt.name}")
    largest = np.frombuffer(reader.take(fmt.size, what="the scale of a grid"), fmt.numbers)[0]
    if not _LEAST[fmt] <= largest < np.inf:
        raise WireError(f"a grid has a scale of at least {_LEAST[fmt]}, and finite; got {largest}")
    data = np.frombuffer(
        reader.take(packed_size(len(out), width), what="packed codes"), dtype=np.uint8
    )
    codes = np.empty(min(BLOCK, len(out)), dtype=code_dtype(width))
    steps, start = _STEPS[width], 0
    for at in blocks(len(out)):
        block = out[at].view(fmt.numbers)
        here, end = codes[: len(block)], start + packed_size(len(block), width)
        unpack(data[start:end], width, out=here)
        if here.max() > 2 * steps:
            raise WireError(f"a grid of {width} bits has codes up to {2 * steps}, got {here.max()}")
        block[:] = here
        block -= fmt.numbers.type(steps)
        _place(block, steps, largest, out=block)
        start = end


def _place(levels: Any, steps: int, largest: Any, *, out: Any) -> None:
    np.divide(levels, levels.dtype.type(steps), out=out)
    np.multiply(out, largest, out=out)


def _codes(block: Bits, fmt: Format, largest: Any, width: int) -> Bits | None:
    """The codes of a block."""
    steps, kind = _STEPS[width], fmt.numbers.type
    levels, placed = (buffer(name, len(block), fmt.numbers) for name in ("levels", "placed"))
    np.multiply(block.view(fmt.numbers), kind(steps / float(largest)), out=levels)
    # So large a number has no room for fractions, and its lowest bits are the whole part.
    levels += kind(_ROOM[fmt])
    codes = levels.view(fmt.bits).astype(code_dtype(width))
    codes += codes.dtype.type(steps)
    levels -= kind(_ROOM[fmt])  # leaves 0.0, never -0.0
    _place(levels, steps, largest, out=placed)
    return None if (placed.view(fmt.bits) != block).any() else codes


def _bits(sample: Sample) -> int | None:
    """The fewest bits whose grid holds the sample."""
    if not len(sample.values) or sample.largest is None or sample.largest < _LEAST[sample.fmt]:
        return None
    few = sample.values[:: max(1, len(sample.values) // _PROBED)]
    values = few.view(sample.fmt.numbers)[:, None]
    steps = np.array([*_STEPS.values()], dtype=values.dtype)
    levels = np.rint(values * (steps / sample.largest)) + values.dtype.type(0)
    placed = levels / steps * sample.largest
    fits = (placed.view(sample.fmt.bits) == few[:, None]).all(axis=0)
    for width in np.flatnonzero(fits).tolist():
        if _codes(sample.values, sample.fmt, sample.largest, _WIDTHS[width]) is not None:
            return _WIDTHS[width]
    return None
