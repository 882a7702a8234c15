"""Finding the values that are not zero, and deciding how to say where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradguard.wire import raw
from gradguard.wire.bitmap import encode_bitmap, nonzero_mask
from gradguard.wire.blocks import blocks
from gradguard.wire.formats import Bits, Format, Parts
from gradguard.wire.header import Support
from gradguard.wire.indices import Indices
from gradguard.wire.sample import Sample
from gradguard.wire.values import ValueCodec, encode_values, ranked

POOLED = 4
"""The tag of values that lie together with those of other tensors of their dtype."""

_SPARSE = 1 / 16  # share of values up to which zeros are always left out
_INDEXED = 8  # at most one value in so many has an index; more have a bitmap
_PACKED = 16  # codes of fewer bits than this hold their zeros, which takes less time


@dataclass(frozen=True)
class Coded:
    """One tensor as bytes of its own, and what is to be written together with other tensors'."""

    support: Support
    tag: int
    parts: Parts
    indices: Indices | None = None
    pooled: Bits | None = None


def coded(bits: Bits, fmt: Format, *, portable: bool) -> Coded:
    """A tensor in the shortest way that a sample of it suggests and all of it allows."""
    sample = Sample.of(bits, fmt)
    if len(sample.nonzero.values) < len(sample.values):
        order = _dense_order(sample)
        if order is None:
            return _sparse(bits, fmt, portable)
    else:
        order = ranked(sample)
    tag, parts = encode_values(sample, order)
    return Coded(Support.ALL, tag, parts)


def survivors(kept: Bits, fmt: Format) -> tuple[int, Parts, Bits | None]:
    """Values picked out of a tensor; raw ones are left for the pool of their dtype."""
    sample = Sample.of(kept, fmt)
    tag, parts = encode_values(sample, ranked(sample))
    if tag == raw.TAG and len(kept):
        return POOLED, [], kept
    return tag, parts, None


def _sparse(bits: Bits, fmt: Format, portable: bool) -> Coded:
    indices = nonzero_indices(bits, most=len(bits) // _INDEXED)
    if indices is not None:
        tag, parts, pooled = survivors(bits[indices], fmt)
        return Coded(Support.INDICES, tag, parts, indices, pooled)
    bitmap, kept = encode_bitmap(bits, portable=portable)
    tag, parts, pooled = survivors(kept, fmt)
    return Coded(Support.BITMAP, tag, [bitmap, *parts], None, pooled)


def nonzero_indices(bits: Bits, *, most: int) -> Indices | None:
    """Where values are not zero, or ``None`` if there are more than ``most`` of them."""
    found, total = [], 0
    for at in blocks(len(bits)):
        here = np.flatnonzero(nonzero_mask(bits[at]))
        total += len(here)
        if total > most:
            return None
        here += at.start
        found.append(here)
    return np.concatenate(found) if len(found) != 1 else found[0]


def _dense_order(sample: Sample) -> Sequence[tuple[float, ValueCodec]] | None:
    """The codecs for all values, or ``None`` if leaving out zeros is likely to be shorter."""
    share = len(sample.nonzero.values) / len(sample.values)
    if share <= _SPARSE:
        return None
    order = ranked(sample)
    dense, codec = order[0]
    if codec.TAG != raw.TAG and dense < _PACKED:
        return order
    dense = 8.0 * sample.fmt.size if codec.TAG == raw.TAG else dense
    return order if 1 + share * ranked(sample.nonzero)[0][0] > 0.95 * dense else None
