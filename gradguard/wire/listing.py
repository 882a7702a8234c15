"""What is inside a message, without decoding a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from gradguard.wire import factors as low_rank
from gradguard.wire.envelope import HEAD_BYTES, VERSION, opened
from gradguard.wire.header import Record, Support, decode_header
from gradguard.wire.reader import Reader
from gradguard.wire.support import POOLED
from gradguard.wire.values import codec_by_tag


@dataclass(frozen=True)
class TensorListing:
    """One tensor: its form, the codec it was encoded with, and the bytes that are its alone."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    codec: str
    bytes: int
    dense_bytes: int


@dataclass(frozen=True)
class Listing:
    """A message: its tensors, what they share, and the bytes of each.

    ``total_bytes`` is the sum of ``header_bytes``, the bytes of every tensor and those of
    ``shared``, which are indices of and values from several tensors.
    """

    version: int
    total_bytes: int
    dense_bytes: int
    header_bytes: int
    shared: tuple[tuple[str, int], ...]
    tensors: tuple[TensorListing, ...]


def inspect(data: bytes | bytearray | memoryview) -> Listing:
    """List a message without decoding its tensors.

    No tensor is decoded, so the listing of hostile bytes is what they claim and not what is in
    them. It costs little memory whatever they claim, and a listing does not mean that ``decode``
    succeeds.

    Args:
        data: The bytes of one message, all of them.

    Raises:
        WireError: The head or the table of contents is damaged, hostile or of another version.

    >>> import torch
    >>> from gradguard.wire import encode
    >>> inspect(encode({"bias": torch.tensor([1.0, -2.0])})).tensors
    (TensorListing(name='bias', shape=(2,), dtype='float32', codec='narrowed', bytes=3, \
dense_bytes=8),)
    """
    body = opened(data)
    reader = Reader(body)
    header = decode_header(reader)
    header_bytes = HEAD_BYTES + len(body) - reader.left
    shared = [("indices", header.index_bytes)] if header.index_bytes else []
    shared += [(f"values, {pool.fmt.name}", pool.length) for pool in header.pools]
    tensors = tuple(
        TensorListing(r.name, r.shape, r.fmt.name, _codec(r), r.length, r.size * r.fmt.size)
        for r in header.records
    )
    dense = sum(tensor.dense_bytes for tensor in tensors)
    return Listing(VERSION, HEAD_BYTES + len(body), dense, header_bytes, tuple(shared), tensors)


_SUPPORTS = {
    Support.INDICES: "indices",
    Support.BITMAP: "bitmap",
    Support.SEED: "seed",
    Support.SIGNED_BITMAP: "bitmap and signs",
}


def _codec(record: Record) -> str:
    if record.support is Support.ALL and record.tag == low_rank.TAG:
        return low_rank.NAME
    if record.support is Support.ALL:
        return codec_by_tag(record.tag).NAME
    shared = record.tag == POOLED
    values = "shared values" if shared else codec_by_tag(record.tag).NAME
    return f"{_SUPPORTS[record.support]} + {values}"
