"""From tensors to bytes: for each tensor the shortest codec that gives it back bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gradguard.wire import factors as low_rank
from gradguard.wire import raw
from gradguard.wire.byte_planes import encode_planes
from gradguard.wire.compression import section
from gradguard.wire.envelope import sealed
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits, Format, Parts, bits_of, format_of
from gradguard.wire.header import (
    MOST_TENSORS,
    Header,
    Pool,
    Record,
    Support,
    check_record,
    encode_header,
)
from gradguard.wire.indices import Indices, encode_indices
from gradguard.wire.seeded import covering
from gradguard.wire.support import find_support
from gradguard.wire.values import encode_values

POOLED = 4
"""The tag of values that lie together with those of other tensors of their dtype."""

Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass
class _Draft:
    """What has been written so far, and what tensors share."""

    portable: bool
    records: list[Record] = field(default_factory=list)
    parts: Parts = field(default_factory=list)
    indices: list[Indices] = field(default_factory=list)
    indexed: int = 0  # elements of the tensors with indices
    pools: dict[Format, list[Bits]] = field(default_factory=dict)

    def add(self, entry: _Entry, support: Support, tag: int, parts: Parts) -> None:
        length = sum(len(part) for part in parts)
        self.records.append(Record(entry.name, entry.fmt, entry.shape, support, tag, length))
        self.parts += parts

    def add_survivors(self, entry: _Entry, support: Support, before: Parts, kept: Bits) -> None:
        """Values picked out of a tensor; raw ones go into the pool of their dtype."""
        tag, parts = encode_values(kept, entry.fmt)
        if tag == raw.TAG and len(kept):
            self.pools.setdefault(entry.fmt, []).append(kept)
            tag, parts = POOLED, []
        self.add(entry, support, tag, before + parts)


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

    Args:
        message: Tensors by name: floating point (8 to 64 bits), integer or bool.
        mask_seed: The seed with which ``KeepRandomK`` drew what this message keeps. Indices are
            then left out and drawn again by the receiver. If a value that is not zero lies
            elsewhere, the seed is ignored and indices are sent.
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
    draft = _Draft(portable)
    coordinates = None if mask_seed is None else covering(mask_seed, [e.bits for e in entries])
    if coordinates is None:
        for entry in entries:
            _add(draft, entry, (factors or {}).get(entry.name))
        return _written(draft, seed=0, drawn=0)
    at = 0
    for entry in entries:
        first, last = np.searchsorted(coordinates, (at, at + len(entry.bits)))
        kept = entry.bits[coordinates[first:last] - at]
        draft.add_survivors(entry, Support.SEED, [], kept)
        at += len(entry.bits)
    return _written(draft, seed=mask_seed or 0, drawn=len(coordinates))


def _entry(name: str, tensor: Tensor) -> _Entry:
    fmt = format_of(name, tensor)
    check_record(name, tensor.shape)
    return _Entry(name, fmt, tuple(tensor.shape), bits_of(tensor))


def _add(draft: _Draft, entry: _Entry, factors: tuple[Tensor, Tensor] | None) -> None:
    if factors is not None:
        parts = low_rank.encode_factors(entry.bits, entry.fmt, factors, name=entry.name)
        if parts is not None:
            draft.add(entry, Support.ALL, low_rank.TAG, parts)
            return
    support, where = find_support(entry.bits, entry.fmt)
    if where is None:
        tag, parts = encode_values(entry.bits, entry.fmt)
        draft.add(entry, support, tag, parts)
        return
    kept = entry.bits[where]
    if support is Support.INDICES:
        draft.indices.append(where + draft.indexed)
        draft.indexed += len(entry.bits)
        draft.add_survivors(entry, support, [], kept)
        return
    mask = section(np.packbits(where, bitorder="little"), portable=draft.portable)
    draft.add_survivors(entry, support, [mask], kept)


def _written(draft: _Draft, *, seed: int, drawn: int) -> bytes:
    pools, pooled = [], []
    for fmt, kept in sorted(draft.pools.items(), key=lambda pool: pool[0].code):
        values = np.concatenate(kept)
        pooled.append(encode_planes(values, fmt, portable=draft.portable))
        pools.append(Pool(fmt, len(values), len(pooled[-1])))
    indices = np.concatenate(draft.indices) if draft.indices else np.empty(0, np.int64)
    coded = encode_indices(indices, portable=draft.portable) if len(indices) else b""
    header = Header(tuple(draft.records), len(indices), len(coded), seed, drawn, tuple(pools))
    return sealed([encode_header(header), coded, *pooled, *draft.parts])
