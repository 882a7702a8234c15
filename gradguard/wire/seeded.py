"""Random-k: the receiver draws the coordinates itself, from a seed in the message."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradguard.kernels.random_coordinates import Coordinates, draw_coordinates
from gradguard.wire.formats import Bits

_SLACK = 4  # at most so many coordinates are drawn for one value that is not zero
_EXACT = 1 / 64  # share of superfluous coordinates that are not worth another draw


def covering(seed: int, tensors: Sequence[Bits]) -> Coordinates | None:
    """The shortest draw found that reaches every non-zero of the tensors laid end to end.

    The message does not say how many coordinates its sender drew, and some of them may hold a
    zero. A longer draw from one seed contains the shorter ones, so bisection finds the length.
    ``None`` if no draw of reasonable length reaches all.
    """
    size = sum(len(bits) for bits in tensors)
    ends = np.cumsum([0, *(len(bits) for bits in tensors)])
    found = [np.flatnonzero(bits) + at for bits, at in zip(tensors, ends[:-1], strict=True)]
    needed = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    if not len(needed):
        return None
    low, high = len(needed), min(size, _SLACK * len(needed) + 64)
    if low <= size // 2:
        high = min(high, size // 2)  # a longer draw is of those left out, and contains no shorter
    drawn = draw_coordinates(seed, size, low)
    if _covers(drawn, needed):
        return drawn
    best = draw_coordinates(seed, size, high)
    if not _covers(best, needed):
        return None
    while high - low > max(1, _EXACT * low):
        middle = (low + high) // 2
        drawn = draw_coordinates(seed, size, middle)
        if _covers(drawn, needed):
            best, high = drawn, middle
        else:
            low = middle
    return best


def _covers(drawn: Coordinates, needed: Coordinates) -> bool:
    places = np.searchsorted(drawn, needed)
    return bool((drawn[np.minimum(places, len(drawn) - 1)] == needed).all())
