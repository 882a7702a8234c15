"""Random-k: the receiver draws the coordinates itself, from a seed in the message."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradguard.kernels.random_coordinates import Coordinates, draw_coordinates
from gradguard.wire.formats import Bits


def exact_draw(seed: int, tensors: Sequence[Bits]) -> Coordinates | None:
    """The coordinates drawn from ``seed``, if they are those of the non-zeros and no others.

    Tensors are laid end to end. A draw with one coordinate whose value is zero is not used:
    indices would not say that it was drawn, and the seed must tell no more than they do.
    """
    size = sum(len(bits) for bits in tensors)
    ends = np.cumsum([0, *(len(bits) for bits in tensors)])
    found = [np.flatnonzero(bits) + at for bits, at in zip(tensors, ends[:-1], strict=True)]
    nonzero = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    if not len(nonzero):
        return None
    drawn = draw_coordinates(seed, size, len(nonzero))
    return drawn if np.array_equal(drawn, nonzero) else None
