"""Finding the values that are not zero, and deciding how to say where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradguard.wire import raw
from gradguard.wire.bitmap import encode_bitmap, encode_signed_bitmap, nonzero_mask
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
_NEGATIVE = 1 / 32  # share of -0.0 up to which it is a value like any other
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
    signed = _signed(sample, portable) if _has_signed_zeros(sample) else None
    if signed is not None:
        return signed
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


def _has_signed_zeros(sample: Sample) -> bool:
    """Whether -0.0 is frequent and sending its sign alone is likely to be shortest."""
    values, fmt = sample.values, sample.fmt
    if not fmt.signed_zero:
        return False
    magnitudes = values << 1
    kept = Sample(values[magnitudes != 0], sample.whole, fmt)
    zeros = len(values) - len(kept.values)
    negative = zeros - np.count_nonzero(values == 0)
    if negative <= _NEGATIVE * len(values):
        return False
    share, plain = len(kept.values) / len(values), len(sample.nonzero.values) / len(values)
    signed = 2 - share + share * ranked(kept)[0][0]
    others = (ranked(sample)[0][0], 1 + plain * ranked(sample.nonzero)[0][0])
    return signed < 0.95 * min(others)


def _signed(sample: Sample, portable: bool) -> Coded | None:
    bitmap, signs, kept = encode_signed_bitmap(sample.whole, portable=portable)
    tag, parts, pooled = survivors(kept, sample.fmt)
    own: Parts = [bitmap, signs, *parts]
    size = sum(map(len, own)) + (0 if pooled is None else pooled.nbytes)
    return (
        Coded(Support.SIGNED_BITMAP, tag, own, None, pooled) if size < sample.whole.nbytes else None
    )


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
