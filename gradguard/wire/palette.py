"""Values of which few are distinct: a list of them, and for each value its place in the list.

Signs take one bit a value, three values 1.6 bits, up to 256 values at most 8 bits, and a tensor
that holds one value all over takes none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gradguard.wire import base3, bit_packing
from gradguard.wire.blocks import BLOCK, blocks, buffer
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits, Format, Parts
from gradguard.wire.reader import Reader, varint
from gradguard.wire.sample import Sample

TAG, NAME = 2, "palette"
_MOST = 256
_COMPARED = 4  # up to so many, comparing with each is quicker than searching
_ATTEMPTS = 8
_HALF = 16  # upper bits of a value, which as a rule tell it from all others of a palette

_Places = Callable[[Bits], tuple[Bits, Bits | None]]


def estimate(sample: Sample) -> float | None:
    """Bits a value, unless most values of the sample are distinct."""
    distinct = len(sample.distinct)
    # Values seen once foretell values not seen yet (Good and Turing); a palette has few of them.
    if distinct > _MOST or sample.singles > 4 + distinct // 2:
        return None
    packed = 1.6 if distinct == 3 else float(_bits_of(distinct))
    stored = 8.0 * distinct * sample.fmt.size / len(sample.whole)
    # Searching takes several times longer than rounding does: it has to save a bit.
    return packed + stored + (distinct > _COMPARED)


def encode(sample: Sample, *, bits: float) -> Parts | None:
    """The number of distinct values, the values, and every value's place among them."""
    whole, palette = sample.whole, sample.distinct
    for _ in range(_ATTEMPTS):
        if len(palette) > _MOST:
            return None
        places = _places_by(palette)
        out = np.empty(_packed_size(len(whole), len(palette)), dtype=np.uint8)
        missing = _pack_all(whole, palette, places, out)
        if missing is None:
            head = varint(len(palette)) + palette.astype(sample.fmt.bits).tobytes()
            return [head, out.data] if len(head) + len(out) < whole.nbytes else None
        palette = np.unique(np.concatenate((palette, missing)))
    return None


def decode(reader: Reader, fmt: Format, *, out: Bits) -> None:
    """Fill ``out`` with the values."""
    size = reader.varint(what="the size of a palette", most=_MOST)
    stored = reader.take(size * fmt.size, what="a palette")
    palette = np.frombuffer(stored, dtype=fmt.bits)
    if not size or not (palette[1:] > palette[:-1]).all():
        raise WireError("a palette must hold at least one value, in rising order of their bits")
    data = np.frombuffer(
        reader.take(_packed_size(len(out), size), what="packed codes"), dtype=np.uint8
    )
    codes = buffer("codes", min(BLOCK, len(out)), np.uint8)
    start = 0
    for at in blocks(len(out)):
        block = out[at]
        here, end = codes[: len(block)], start + _packed_size(len(block), size)
        _unpack(data[start:end], size, here)
        if here.max() >= size:
            raise WireError(f"a code points to place {here.max()} of a palette of {size} values")
        _look_up(palette, here, out=block)
        start = end


def _look_up(palette: Bits, codes: Bits, *, out: Bits) -> None:
    if len(palette) > _COMPARED:
        np.take(palette, codes, out=out, mode="clip")
        return
    # Sums of multiples, several times quicker than looking up every value. Bits wrap around.
    out[:] = codes == 1 if len(palette) > 2 else codes
    if len(palette) > 1:
        out *= palette[1] - palette[0]
    for place in range(2, len(palette)):
        out += (codes == place) * (palette[place] - palette[0])
    out += palette[0]


def _pack_all(bits: Bits, palette: Bits, places: _Places, out: Bits) -> Bits | None:
    """Pack the places of all values; stops at a block with values that are missing: those."""
    start = 0
    for at in blocks(len(bits)):
        codes, missing = places(bits[at])
        if missing is not None:
            return missing
        end = start + _packed_size(len(codes), len(palette))
        _pack(codes, len(palette), out[start:end])
        start = end
    return None


def _places_by(palette: Bits) -> _Places:
    """The quickest way to find the places of a block, and the values that have none."""
    if len(palette) <= _COMPARED:
        return partial(_by_comparing, palette)
    high = palette >> (8 * palette.itemsize - _HALF) if palette.itemsize > 2 else palette
    if (high[1:] > high[:-1]).all():
        table = np.zeros(2**_HALF, dtype=np.uint8)
        table[high] = np.arange(len(palette))
        return partial(_by_table, palette, table)
    return partial(_by_searching, palette)


def _by_comparing(palette: Bits, block: Bits) -> tuple[Bits, Bits | None]:
    codes = np.zeros(len(block), dtype=np.uint8)
    equal = buffer("equal", len(block), bool)
    found = 0
    for place, value in enumerate(palette):
        np.equal(block, value, out=equal)
        found += int(np.count_nonzero(equal))
        for _ in range(place):  # sums of bytes, which are quicker than products
            codes += equal.view(np.uint8)
    return codes, None if found == len(block) else block[~np.isin(block, palette)]


def _by_table(palette: Bits, table: Bits, block: Bits) -> tuple[Bits, Bits | None]:
    """By the upper bits alone; whether the others are right as well is looked at."""
    high = block >> (8 * block.itemsize - _HALF) if block.itemsize > 2 else block
    codes = np.take(table, high)
    return codes, _missing(palette, codes, block)


def _by_searching(palette: Bits, block: Bits) -> tuple[Bits, Bits | None]:
    codes = np.minimum(np.searchsorted(palette, block), len(palette) - 1).astype(np.uint8)
    return codes, _missing(palette, codes, block)


def _missing(palette: Bits, codes: Bits, block: Bits) -> Bits | None:
    wrong = np.take(palette, codes) != block
    return block[wrong] if wrong.any() else None


def _bits_of(size: int) -> int:
    return max(0, size - 1).bit_length()


def _packed_size(count: int, size: int) -> int:
    if size == 3:
        return base3.packed_size(count)
    return bit_packing.packed_size(count, _bits_of(size))


def _pack(codes: Bits, size: int, out: Bits) -> None:
    if size == 3:
        base3.pack(codes, out=out)
    elif size > 1:
        bit_packing.pack(codes, _bits_of(size), out=out)


def _unpack(data: Bits, size: int, codes: Bits) -> None:
    if size == 3:
        base3.unpack(data, out=codes)
    elif size > 1:
        bit_packing.unpack(data, _bits_of(size), out=codes)
    else:
        codes[:] = 0
