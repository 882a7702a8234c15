"""Sections of bytes, stored as they are or compressed by zlib or zstd, whichever is smallest.

zstd comes with the optional package ``zstandard``; it is quicker and as a rule a little smaller.
Where it is not, as for some short sections, and where it is missing, zlib takes its place, which
every Python has. A section says which of the three it is.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits
from gradguard.wire.reader import Reader, varint

_STORED, _ZLIB, _ZSTD = 0, 1, 2
_LEVEL = 1  # higher levels are several times slower on such data, and no smaller
_BOTH = 2**12  # bytes up to which zlib, several times slower, is tried beside zstd
_SAMPLED = 2**14  # bytes whose histogram tells whether compressing can pay
_HOPELESS = 7.9  # bits a byte, of 8


def section(data: Bits | bytes, *, portable: bool) -> bytes:
    """``data`` in the shortest way known, with its method and length before it.

    Args:
        data: Bytes.
        portable: Use nothing that a receiver without ``zstandard`` cannot read.
    """
    raw = np.ascontiguousarray(np.frombuffer(data, dtype=np.uint8))
    method, stored = _STORED, raw.tobytes()
    for known, compressed in _compressed(raw, portable) if _may_shrink(raw) else ():
        if len(compressed) < len(stored):
            method, stored = known, compressed
    return bytes((method,)) + varint(len(stored)) + stored


def read_section(reader: Reader, *, size: int, what: str) -> memoryview:
    """The ``size`` bytes of a section; never more memory than that, whatever the section says."""
    method = reader.byte(what=what)
    stored = reader.take(reader.varint(what=what, most=reader.left), what=what)
    if method == _STORED:
        data = stored
    elif method == _ZLIB:
        data = memoryview(_inflated(stored, size, what))
    elif method == _ZSTD:
        data = memoryview(_zstd_decompressed(stored, size, what))
    else:
        raise WireError(f"{what} is compressed in a way with the unknown number {method}")
    if len(data) != size:
        raise WireError(f"{what} must hold {size} bytes, and holds {len(data)}")
    return data


def _compressed(raw: Bits, portable: bool) -> Iterator[tuple[int, bytes]]:
    zstandard = None if portable else _zstandard()
    if zstandard is not None:
        yield _ZSTD, zstandard.ZstdCompressor(level=_LEVEL).compress(raw.data)
    if zstandard is None or len(raw) < _BOTH:
        yield _ZLIB, zlib.compress(raw.data, _LEVEL)


def _may_shrink(raw: Bits) -> bool:
    if len(raw) < 32:
        return False
    sample = raw[:: max(1, len(raw) // _SAMPLED)]
    share = np.bincount(sample, minlength=256) / len(sample)
    share = share[share > 0]
    entropy = float(-(share * np.log2(share)).sum())
    # A short sample looks less random than it is: about one bit per 1.4 values seen.
    return entropy + len(share) / (1.4 * len(sample)) < _HOPELESS


def _inflated(stored: memoryview, size: int, what: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stored, size + 1)  # one more shows that it goes on
    except zlib.error as error:
        raise WireError(f"{what} is damaged: {error}") from None
    if len(data) > size or not inflater.eof or inflater.unused_data:
        raise WireError(f"{what} does not decompress to exactly {size} bytes")
    return data


def _zstd_decompressed(stored: memoryview, size: int, what: str) -> bytes:
    zstandard = _zstandard()
    if zstandard is None:
        raise WireError(
            f"{what} is compressed with zstd, which needs: pip install 'gradguard[wire]'; or let "
            "the sender encode with portable=True"
        )
    try:
        # The size that a frame declares is allocated before anything is decompressed.
        declared = zstandard.frame_content_size(stored)
        if declared != size:
            raise WireError(f"{what} must hold {size} bytes, and declares {declared}")
        window = max(2**20, 1 << size.bit_length())
        decompressor = zstandard.ZstdDecompressor(max_window_size=min(window, 2**31))
        data: bytes = decompressor.decompress(stored, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"{what} is damaged: {error}") from None
    return data


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        return None
