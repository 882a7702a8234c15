"""From tensors to bytes: for each tensor the shortest codec that gives it back bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradguard.kernels.random_coordinates import Coordinates
from gradguard.wire.byte_planes import encode_planes
from gradguard.wire.envelope import sealed
from gradguard.wire.errors import WireError
from gradguard.wire.factors import TAG as FACTORS
from gradguard.wire.factors import encode_factors
from gradguard.wire.formats import Bits, Format, bits_of, format_of
from gradguard.wire.header import (
    INDEX_BYTES,
    MOST_TENSORS,
    Header,
    Pool,
    Record,
    Support,
    check_record,
    encode_header,
)
from gradguard.wire.indices import encode_indices
from gradguard.wire.seeded import exact_draw
from gradguard.wire.support import Coded, coded, survivors

Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Entry:
    name: str
    fmt: Format
    shape: tuple[int, ...]
    bits: Bits


def encode(
    message: Mapping[str, Tensor],
    *,
    mask_seed: int | None = None,
    factors: Factors | None = None,
    portable: bool = False,
) -> bytes:
    """A message of tensors as bytes, which :func:`decode` reads without any context.

    Structure is found in the values alone: zeros, few distinct values, an even grid, values that
    fit a narrower dtype. Any defended gradient thus becomes small, whatever transform made it.

    Guarantees:

    - ``decode(encode(message))`` has the same names in the same order, and for each the same
      shape, dtype and bits: the sign of zero and the payload of NaN are kept. Memory layout and
      device are not: tensors come back contiguous and on the CPU;
    - the message is not modified.

    The bytes are not encrypted, and how many there are depends on the values.

    Half of the zeros of ``g * mask`` are -0.0, whose sign takes a bit for every value that was
    dropped: ``torch.where(mask, g, 0)`` has shorter messages.

    Args:
        message: Tensors by name: floating point (8 to 64 bits), integer or bool.
        mask_seed: The seed with which ``KeepRandomK`` drew what this message keeps. Indices are
            then left out and drawn again by the receiver. It is ignored, and indices are sent,
            unless the coordinates drawn are those of the values that are not zero and no others:
            a coordinate that was drawn and holds a zero, as of a unit that no example has
            reached, is not told. It is ignored as well where more than one coordinate for every
            8 bytes was drawn, and where the message is no shorter with it.
        factors: ``(p, q)`` for tensors that are ``outer_sum(p, q)``, by name. Where they are not,
            bit by bit, the factors are ignored and the values are sent.
        portable: Do not compress with zstd, which a receiver without the extra
            ``gradguard[wire]`` cannot read.

    Raises:
        TypeError: An entry is no dense tensor, or has a dtype that a message cannot hold.
        WireError: A name or a shape is beyond the limits of the format.

    >>> import torch
    >>> from gradguard.wire import decode
    >>> data = encode({"weight": torch.zeros(1000, 1000)})
    >>> len(data), decode(data)["weight"].shape
    (36, torch.Size([1000, 1000]))
    """
    entries = [_entry(name, tensor) for name, tensor in message.items()]
    if len(entries) > MOST_TENSORS:
        raise WireError(f"a message has at most {MOST_TENSORS} tensors, got {len(entries)}")

    def one(entry: _Entry) -> Coded:
        pair = (factors or {}).get(entry.name)
        parts = None if pair is None else encode_factors(entry.bits, entry.fmt, pair, entry.name)
        if parts is not None:
            return Coded(Support.ALL, FACTORS, parts)
        return coded(entry.bits, entry.fmt, portable=portable)

    # One after the other: nearly all of the loops are so short that two threads spend more time
    # on handing the interpreter's lock to each other than in the loops.
    with np.errstate(all="ignore"):  # any bits may be numbers, and some overflow
        found = [one(entry) for entry in entries]
    plain = _written(entries, found, portable)
    seeded = None if mask_seed is None else _seeded(entries, mask_seed, portable)
    return plain if seeded is None or len(seeded) >= len(plain) else seeded


def _entry(name: str, tensor: Tensor) -> _Entry:
    fmt = format_of(name, tensor)
    check_record(name, tensor.shape)
    return _Entry(name, fmt, tuple(tensor.shape), bits_of(tensor))


def _seeded(entries: Sequence[_Entry], seed: int, portable: bool) -> bytes | None:
    """With a seed in place of indices; ``None`` where the seed does not fit."""
    coordinates = exact_draw(seed, [entry.bits for entry in entries])
    if coordinates is None or INDEX_BYTES * len(coordinates) > sum(e.bits.nbytes for e in entries):
        return None  # a reader would need more memory for them than for the tensors
    with np.errstate(all="ignore"):
        found = list(_drawn(entries, coordinates))
    return _written(entries, found, portable, seed=seed, drawn=len(coordinates))


def _drawn(entries: Sequence[_Entry], coordinates: Coordinates) -> Iterator[Coded]:
    at = 0
    for entry in entries:
        first, last = np.searchsorted(coordinates, (at, at + len(entry.bits)))
        tag, parts, pooled = survivors(entry.bits[coordinates[first:last] - at], entry.fmt)
        yield Coded(Support.SEED, tag, parts, None, pooled)
        at += len(entry.bits)


def _written(
    entries: Sequence[_Entry],
    found: Sequence[Coded],
    portable: bool,
    *,
    seed: int = 0,
    drawn: int = 0,
) -> bytes:
    records, own, indices, at = [], [], [np.empty(0, dtype=np.int64)], 0
    kept: dict[Format, list[Bits]] = {}
    for entry, one in zip(entries, found, strict=True):
        length = sum(map(len, one.parts))
        records.append(Record(entry.name, entry.fmt, entry.shape, one.support, one.tag, length))
        own += one.parts
        if one.indices is not None:
            indices.append(one.indices + at)
            at += len(entry.bits)
        if one.pooled is not None:
            kept.setdefault(entry.fmt, []).append(one.pooled)
    pools, pooled = _pooled(kept, portable)
    together = np.concatenate(indices)
    gaps = encode_indices(together, portable=portable) if len(together) else b""
    header = Header(tuple(records), len(together), len(gaps), seed, drawn, pools)
    return sealed([encode_header(header), gaps, *pooled, *own])


def _pooled(
    kept: Mapping[Format, Sequence[Bits]], portable: bool
) -> tuple[tuple[Pool, ...], list[bytes]]:
    pools, data = [], []
    for fmt, values in sorted(kept.items(), key=lambda pool: pool[0].code):
        together = np.concatenate(values)
        data.append(encode_planes(together, fmt, portable=portable))
        pools.append(Pool(fmt, len(together), len(data[-1])))
    return tuple(pools), data
