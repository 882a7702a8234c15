"""Small inputs on which a reader once took long. Should one do so again, so does this file."""

from __future__ import annotations

import pytest
import torch

from gradguard import wire
from gradguard.wire.compression import read_section, section
from gradguard.wire.envelope import sealed
from gradguard.wire.formats import FLOAT32
from gradguard.wire.header import (
    MOST_TENSORS,
    Header,
    Record,
    Support,
    encode_header,
    encode_record,
)
from gradguard.wire.raw import TAG
from gradguard.wire.reader import Reader, varint


def test_a_name_that_occurs_twice_among_very_many_is_found_at_once() -> None:
    names = [f"{i:x}" for i in range(MOST_TENSORS - 1)]
    records = [Record(n, FLOAT32, (0,), Support.ALL, TAG, 0) for n in (*names, names[-1])]
    data = sealed([encode_header(Header(tuple(records), 0, 0, 0, 0, ()))])
    # Each name was looked up in a list of the ones before: 90 seconds for 140 kB.
    for read in (wire.decode, wire.inspect):
        with pytest.raises(wire.WireError, match="'fffe' occurs more than once"):
            read(data)


def test_dimensions_are_limited_together_by_reader_and_writer() -> None:
    """Each costs time and memory, of empty tensors too: 64 of each took 5 seconds for 198 kB."""
    shape = (0,) * 64
    records = [Record(str(i), FLOAT32, shape, Support.ALL, TAG, 0) for i in range(2**12 + 1)]
    with pytest.raises(wire.WireError, match="262144 dimensions together, got 262208"):
        encode_header(Header(tuple(records), 0, 0, 0, 0, ()))
    # Written one by one: the table of contents is the same, only longer.
    fitting, last = Header(tuple(records[:-1]), 0, 0, 0, 0, ()), encode_record(records[-1])
    assert len(wire.decode(sealed([encode_header(fitting)]), max_bytes=0)) == 2**12
    plain = Reader(memoryview(encode_header(fitting)))
    size = plain.varint(what="size", most=2**24)
    table = bytes(read_section(plain, size=size, what="table"))
    longer = varint(len(records)) + table[len(varint(len(records) - 1)) :] + last
    data = sealed([varint(len(longer)) + section(longer, portable=True)])
    with pytest.raises(wire.WireError, match="at most 262144 dimensions together"):
        wire.decode(data, max_bytes=0)
    message = {str(i): torch.zeros(shape) for i in range(2**12 + 1)}
    with pytest.raises(wire.WireError, match="send several messages"):
        wire.encode(message)


def test_names_that_no_reader_would_take_are_not_written() -> None:
    message = {f"{i:4096}": torch.zeros(0) for i in range(2**12)}
    with pytest.raises(wire.WireError, match="shorten the names or send several messages"):
        wire.encode(message)
    message = {f"{i:4080}": torch.zeros(0) for i in range(2**12)}
    assert list(wire.decode(wire.encode(message))) == list(message)
