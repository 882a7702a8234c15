"""Sorted indices, as the gaps between them.

Gaps are split into planes, all low bytes first, then all second bytes: every plane is then
compressed by itself. Most high bytes are zero and cost next to nothing. Long planes are compressed
in pieces: some layers are sent in part, others nearly not at all, and each has its own statistics.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradguard.wire.compression import read_section, section
from gradguard.wire.errors import WireError
from gradguard.wire.reader import Reader

_MOST_PLANES = 6  # gaps of up to 2**48
_PIECE = 2**15  # indices; shorter ones gain nothing more, measured on gradients of a ResNet

Indices = NDArray[np.int64]


def encode_indices(indices: Indices, *, portable: bool) -> bytes:
    """The number of planes, and the planes of all gaps."""
    gaps = np.diff(indices, prepend=-1) - 1
    planes = max(1, -(-int(gaps.max(initial=0)).bit_length() // 8))
    out = [bytes((planes,))]
    for place in range(planes):
        plane = (gaps >> (8 * place)).astype(np.uint8)
        for start in range(0, len(plane), _PIECE):
            out.append(section(plane[start : start + _PIECE], portable=portable))
    return b"".join(out)


def decode_indices(reader: Reader, *, count: int, size: int) -> Indices:
    """``count`` indices below ``size``, each larger than the one before it."""
    planes = reader.byte(what="the number of planes of gaps")
    if not 1 <= planes <= _MOST_PLANES:
        raise WireError(f"gaps have 1 to {_MOST_PLANES} planes, got {planes}")
    gaps = np.zeros(count, dtype=np.int64)
    for place in range(planes):
        plane = _read_plane(reader, count)
        if place and place == planes - 1 and not plane.any():
            raise WireError("the last plane of gaps must not be zero all over")
        gaps |= plane.astype(np.int64) << (8 * place)
    gaps += 1
    # In floating point first: a sum of integers could wrap around and come out small again.
    if gaps.sum(dtype=np.float64) > 2.0**62:
        raise WireError("gaps between indices lead far beyond the end")
    found = np.cumsum(gaps, out=gaps)
    found -= 1
    if count and found[-1] >= size:
        raise WireError(f"an index must be less than {size}, got {found[-1]}")
    return found


def _read_plane(reader: Reader, count: int) -> NDArray[np.uint8]:
    plane = np.empty(count, dtype=np.uint8)
    for start in range(0, count, _PIECE):
        piece = plane[start : start + _PIECE]
        stored = read_section(reader, size=len(piece), what="a plane of gaps")
        piece[:] = np.frombuffer(stored, dtype=np.uint8)
    return plane
