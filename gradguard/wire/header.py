"""The table of contents of a message: what every tensor is, and how many bytes it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from gradguard.wire.compression import read_section, section
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Format, format_by_code
from gradguard.wire.reader import Reader, varint

MOST_TENSORS = 2**16
MOST_NAME_BYTES = 2**12
MOST_DIMENSIONS = 64  # torch has no more
MOST_ALL_DIMENSIONS = 2**18  # of all tensors: each costs a reader time and memory, even of nothing
MOST_ELEMENTS = 2**48
INDEX_BYTES = 8  # of one coordinate in memory
_MOST_HEADER_BYTES = 2**24


class Support(IntEnum):
    """Which values of a tensor are sent; all others are zero, in the last case 0.0 or -0.0."""

    ALL = 0
    INDICES = 1
    BITMAP = 2
    SEED = 3
    SIGNED_BITMAP = 4


@dataclass(frozen=True)
class Record:
    """One tensor: what it is and where its values are."""

    name: str
    fmt: Format
    shape: tuple[int, ...]
    support: Support
    tag: int
    length: int

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Pool:
    """Values of one dtype, from all tensors that have none of their own."""

    fmt: Format
    count: int
    length: int


@dataclass(frozen=True)
class Header:
    """All tensors, and what they share.

    ``seed`` draws ``drawn`` coordinates; ``indices`` coordinates are written in ``index_bytes``
    bytes.
    """

    records: tuple[Record, ...]
    indices: int
    index_bytes: int
    seed: int
    drawn: int
    pools: tuple[Pool, ...]

    def end_to_end(self, support: Support) -> int:
        """Elements of all tensors that are sent in this way."""
        return sum(record.size for record in self.records if record.support is support)

    def bytes_of(self, support: Support) -> int:
        """Bytes in memory of all tensors that are sent in this way."""
        found = (record for record in self.records if record.support is support)
        return sum(record.size * record.fmt.size for record in found)


def encode_header(header: Header) -> bytes:
    """The header as it stands at the beginning of a body."""
    dimensions = sum(len(record.shape) for record in header.records)
    if dimensions > MOST_ALL_DIMENSIONS:
        raise WireError(
            f"the tensors of a message have at most {MOST_ALL_DIMENSIONS} dimensions together, got "
            f"{dimensions}; send several messages"
        )
    numbers = (len(header.records), header.indices, header.index_bytes, header.drawn)
    out = [varint(number) for number in numbers]
    if header.drawn:
        out.append(header.seed.to_bytes(8, "little"))
    out.append(varint(len(header.pools)))
    for pool in header.pools:
        out.append(bytes((pool.fmt.code,)) + varint(pool.count) + varint(pool.length))
    out += [encode_record(record) for record in header.records]
    raw = b"".join(out)
    if len(raw) > _MOST_HEADER_BYTES:
        raise WireError(
            f"names and shapes take {len(raw)} bytes, and a message has room for "
            f"{_MOST_HEADER_BYTES}; shorten the names or send several messages"
        )
    # Always zlib: the header must be readable everywhere, so that a listing is.
    return varint(len(raw)) + section(raw, portable=True)


def decode_header(reader: Reader) -> Header:
    """The header, and the reader behind it; its lengths add up to what is left."""
    size = reader.varint(what="the length of the header", most=_MOST_HEADER_BYTES)
    inner = Reader(read_section(reader, size=size, what="the header"))
    count = inner.varint(what="the number of tensors", most=MOST_TENSORS)
    indices = inner.varint(what="the number of indices", most=MOST_ELEMENTS)
    index_bytes = inner.varint(what="the length of the indices", most=reader.left)
    drawn = inner.varint(what="the number of drawn coordinates", most=MOST_ELEMENTS)
    seed = int.from_bytes(inner.take(8, what="a seed"), "little") if drawn else 0
    pools = _decode_pools(inner, reader.left)
    records = _decode_records(inner, count, reader.left)
    inner.finish(what="the header")
    header = Header(records, indices, index_bytes, seed, drawn, pools)
    _check(header, reader.left)
    return header


def encode_record(record: Record) -> bytes:
    """One line of the table of contents."""
    name = record.name.encode()
    shape = b"".join(map(varint, record.shape))
    what = bytes((record.fmt.code, record.support << 4 | record.tag, len(record.shape)))
    return varint(len(name)) + name + what + shape + varint(record.length)


def _decode_records(reader: Reader, count: int, most: int) -> tuple[Record, ...]:
    records, dimensions = [], 0
    for _ in range(count):
        records.append(_decode_record(reader, most))
        dimensions += len(records[-1].shape)
        if dimensions > MOST_ALL_DIMENSIONS:
            raise WireError(f"tensors have at most {MOST_ALL_DIMENSIONS} dimensions together")
    return tuple(records)


def _decode_record(reader: Reader, most: int) -> Record:
    length = reader.varint(what="the length of a name", most=MOST_NAME_BYTES)
    stored = bytes(reader.take(length, what="a name"))
    try:
        name = stored.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"a name must be UTF-8: {error}") from None
    fmt = format_by_code(reader.byte(what="a dtype"))
    way, tag = divmod(reader.byte(what="a codec"), 16)
    if way not in list(Support):
        raise WireError(f"no way to say which values are sent has the number {way}")
    dimensions = reader.byte(what="a number of dimensions")
    if dimensions > MOST_DIMENSIONS:
        raise WireError(f"a tensor has at most {MOST_DIMENSIONS} dimensions, got {dimensions}")
    shape = tuple(reader.varint(what="a dimension", most=MOST_ELEMENTS) for _ in range(dimensions))
    # Empty dimensions count as 1: torch computes strides of empty tensors too.
    if math.prod(max(1, size) for size in shape) > MOST_ELEMENTS:
        raise WireError(f"a tensor has at most {MOST_ELEMENTS} elements, got shape {shape}")
    own = reader.varint(what="the length of a tensor's bytes", most=most)
    return Record(name, fmt, shape, Support(way), tag, own)


def _decode_pools(reader: Reader, most: int) -> tuple[Pool, ...]:
    pools = []
    for _ in range(reader.varint(what="the number of pools", most=255)):
        fmt = format_by_code(reader.byte(what="the dtype of a pool"))
        count = reader.varint(what="the values of a pool", most=MOST_ELEMENTS)
        pools.append(Pool(fmt, count, reader.varint(what="the length of a pool", most=most)))
    codes = [pool.fmt.code for pool in pools]
    if sorted(set(codes)) != codes:
        raise WireError("pools must come in rising order of their dtypes, one for each")
    return tuple(pools)


def _check(header: Header, left: int) -> None:
    names: set[str] = set()
    for record in header.records:
        if record.name in names:
            raise WireError(f"the name {record.name!r} occurs more than once")
        names.add(record.name)
    lengths = [record.length for record in header.records]
    lengths += [header.index_bytes, *(pool.length for pool in header.pools)]
    if sum(lengths) != left:
        raise WireError(f"the header announces {sum(lengths)} bytes, and {left} follow")
    # Denser coordinates have a bitmap each, and so an index costs no more than what it points to.
    if 8 * header.indices > header.end_to_end(Support.INDICES):
        raise WireError(f"{header.indices} indices are more than one in eight elements")
    for pool in header.pools:
        if pool.count > sum(r.size for r in header.records if r.fmt == pool.fmt):
            raise WireError(f"a pool holds {pool.count} values, more than its tensors have")
    if INDEX_BYTES * header.drawn > header.bytes_of(Support.SEED):
        raise WireError(
            f"{header.drawn} coordinates drawn take more memory than the tensors they are drawn for"
        )


def check_record(name: str, shape: Sequence[int]) -> None:
    """Refuse to write what a reader would refuse."""
    try:
        length = len(name.encode())
    except (UnicodeEncodeError, AttributeError):
        raise WireError(f"a name must be text that UTF-8 can write, got {name!r}") from None
    if length > MOST_NAME_BYTES:
        raise WireError(f"a name has at most {MOST_NAME_BYTES} bytes, got {length}")
    if len(shape) > MOST_DIMENSIONS or math.prod(max(1, n) for n in shape) > MOST_ELEMENTS:
        raise WireError(f"{name!r} has too many dimensions or elements: shape {tuple(shape)}")
