"""What stands before a message: a magic number, the version of the format, and a checksum.

The checksum finds what a line or a disk has damaged, before anything is read. It is no protection:
whoever writes a message can compute it, so the readers behind it believe nothing either. It is
zlib's CRC-32, which every language has, at 2 GB/s here; a faster one would need a dependency.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from gradguard.wire.errors import WireError

MAGIC, VERSION = b"\x89gradgrd", 1
_HEAD = struct.Struct("<8sBI")
HEAD_BYTES = _HEAD.size


def sealed(body: Iterable[bytes | memoryview]) -> bytes:
    """The parts of a body as one message, with the head before them."""
    parts, checksum = list(body), 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    head = _HEAD.pack(MAGIC, VERSION, checksum)
    return b"".join((head, *parts))


def opened(data: bytes | bytearray | memoryview) -> memoryview:
    """The body of a message whose head is in order."""
    view = memoryview(data)
    # An empty array of several dimensions cannot be cast.
    view = view.cast("B") if view.c_contiguous and view.nbytes else memoryview(bytes(view))
    if len(view) < HEAD_BYTES:
        raise WireError(f"a message has at least {HEAD_BYTES} bytes, got {len(view)}: truncated")
    magic, version, checksum = _HEAD.unpack(view[:HEAD_BYTES])
    if magic != MAGIC:
        raise WireError(f"a message begins with {MAGIC!r}, got {magic!r}: this is something else")
    if version != VERSION:
        raise WireError(f"this is version {version} of the format, and only {VERSION} is known")
    body = view[HEAD_BYTES:]
    if zlib.crc32(body) != checksum:
        raise WireError("the checksum does not match: the message was damaged or cut short")
    return body
