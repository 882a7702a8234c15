"""Codes are packed without gaps and come back, block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.wire import WireError, base3
from gradguard.wire.bit_packing import code_dtype, pack, packed_size, unpack
from gradguard.wire.blocks import BLOCK


def by_hand(codes: list[int], bits: int) -> bytes:
    """Obviously: parts of 8, 4, 2 and 1 bits; within a part, codes a stride apart share a byte."""
    out, shift = b"", 0
    for width in (8, 8, 4, 2, 1):
        if bits - shift < width:
            continue
        size = -(-len(codes) * width // 8)
        part = [0] * size
        for at, code in enumerate(codes):
            digit = code >> shift & (1 << width) - 1
            if width == 1:
                part[at // 8] |= digit << at % 8
            else:
                part[at % size] |= digit << width * (at // size)
        out, shift = out + bytes(part), shift + width
    return out


@given(st.integers(1, 16), st.integers(0, 100), st.integers(0, 99))
def test_codes_are_packed_as_by_hand_and_come_back(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(code_dtype(bits))
    packed = np.empty(packed_size(count, bits), dtype=np.uint8)
    pack(codes, bits, out=packed)
    assert packed.tobytes() == by_hand(codes.tolist(), bits)
    found = np.empty_like(codes)
    unpack(packed, bits, out=found)
    assert (found == codes).all()


@pytest.mark.parametrize("bits", range(1, 17))
def test_a_full_block_takes_its_bits_and_no_more(bits: int) -> None:
    assert packed_size(BLOCK, bits) * 8 == BLOCK * bits
    assert packed_size(3 * BLOCK + 1, bits) == 3 * packed_size(BLOCK, bits) + packed_size(1, bits)


@given(st.integers(0, 100), st.integers(0, 99))
def test_five_codes_of_base_3_share_a_byte(count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 3, count).astype(np.uint8)
    packed = np.empty(base3.packed_size(count), dtype=np.uint8)
    base3.pack(codes, out=packed)
    size = -(-count // 5)
    assert packed.tolist() == [
        sum(3**place * int(code) for place, code in enumerate(codes[at::size]))
        for at in range(size)
    ]
    found = np.empty_like(codes)
    base3.unpack(packed, out=found)
    assert (found == codes).all()


@given(st.integers(1, 16), st.integers(1, 40), st.data())
def test_only_one_packing_of_codes_is_read(bits: int, count: int, data: st.DataObject) -> None:
    """Any bytes are the packing of what is read from them, or are refused."""
    size = packed_size(count, bits)
    packed = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8)
    codes = np.empty(count, dtype=code_dtype(bits))
    try:
        unpack(packed, bits, out=codes)
    except WireError:
        return
    again = np.empty_like(packed)
    pack(codes, bits, out=again)
    assert (again == packed).all()
