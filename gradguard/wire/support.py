"""Finding the values that are not zero, and deciding how to say where they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradguard.wire import raw
from gradguard.wire.bit_packing import BLOCK
from gradguard.wire.formats import Bits, Format
from gradguard.wire.header import Support
from gradguard.wire.indices import Indices
from gradguard.wire.values import ranked, sampled

_SPARSE = 1 / 16  # share of values from which packed zeros are as short, and much quicker
_INDEXED = 8  # at most one value in so many has an index; more have a bitmap


def find_support(bits: Bits, fmt: Format) -> tuple[Support, Indices | NDArray[np.bool_] | None]:
    """How to say which values are sent, and the indices or the mask."""
    if not _has_gaps(bits, fmt):
        return Support.ALL, None
    most = len(bits) // _INDEXED
    found: list[Indices] = []
    total = 0
    mask = np.empty(min(BLOCK, len(bits)), dtype=bool)
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        here = mask[: len(block)]
        np.not_equal(block, 0, out=here)
        indices = np.flatnonzero(here)
        total += len(indices)
        if total > most:
            return Support.BITMAP, bits != 0
        indices += start
        found.append(indices)
    return Support.INDICES, np.concatenate(found) if len(found) > 1 else found[0]


def _has_gaps(bits: Bits, fmt: Format) -> bool:
    """Whether leaving out zeros makes the values shorter, as far as a sample can tell."""
    sample = sampled(bits)
    kept = sample[sample != 0]
    if len(kept) == len(sample):
        return False
    share = len(kept) / len(sample)
    if share <= _SPARSE:
        return True
    packed, codec = ranked(sample, fmt, whole=bits)[0]
    if codec.TAG != raw.TAG and packed < 16:
        return False
    survivors = ranked(kept, fmt, whole=bits)[0][0]
    return 1 + share * survivors < 0.95 * packed
