"""Small inputs on which a reader once took long. Should one do so again, so does this file."""

from __future__ import annotations

import pytest

from gradguard import wire
from gradguard.wire.envelope import sealed
from gradguard.wire.formats import FLOAT32
from gradguard.wire.header import MOST_TENSORS, Header, Record, Support, encode_header
from gradguard.wire.raw import TAG


def test_a_name_that_occurs_twice_among_very_many_is_found_at_once() -> None:
    names = [f"{i:x}" for i in range(MOST_TENSORS - 1)]
    records = [Record(n, FLOAT32, (0,), Support.ALL, TAG, 0) for n in (*names, names[-1])]
    data = sealed([encode_header(Header(tuple(records), 0, 0, 0, 0, ()))])
    # Each name was looked up in a list of the ones before: 90 seconds for 140 kB.
    for read in (wire.decode, wire.inspect):
        with pytest.raises(wire.WireError, match="'fffe' occurs more than once"):
            read(data)
