"""From bytes to tensors, for bytes that anybody may have written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradguard.kernels.random_coordinates import draw_coordinates
from gradguard.wire.bitmap import decode_bitmap, decode_signed_zeros
from gradguard.wire.byte_planes import decode_planes
from gradguard.wire.envelope import opened
from gradguard.wire.errors import WireError
from gradguard.wire.factors import TAG as FACTORS
from gradguard.wire.factors import decode_factors
from gradguard.wire.formats import Bits, Format, tensor_of
from gradguard.wire.header import Header, Record, Support, decode_header
from gradguard.wire.indices import Indices, decode_indices
from gradguard.wire.parallel import in_threads
from gradguard.wire.reader import Reader
from gradguard.wire.support import POOLED
from gradguard.wire.values import codec_by_tag

MAX_BYTES = 2**30


def decode(
    data: bytes | bytearray | memoryview, *, max_bytes: int = MAX_BYTES
) -> dict[str, Tensor]:
    """The tensors of a message, by name.

    Guarantees:

    - whatever the bytes are, the answer is a message or a :class:`WireError`;
    - nothing larger than ``max_bytes`` is allocated for the tensors together, and the work on
      them takes a small multiple of that: at its peak the process held 1 to 4.1 times
      ``max_bytes`` more than before, where hostile messages were measured. On top come about 1 KiB
      for each tensor, whatever it holds, and a message has at most 2**16;
    - the same bytes give the same bits on every machine, and whatever a process does with
      subnormal numbers.

    Nothing shows who wrote a message: sign it, or send it over a channel that does.

    Args:
        data: The bytes of one message, all of them.
        max_bytes: Refuse messages whose tensors take more than this many bytes in memory. A few
            bytes can announce a tensor of zeros of any size; 2**30 by default.

    Raises:
        WireError: The bytes are damaged, hostile, of another version, or beyond the limit.
        ValueError: ``max_bytes`` is negative or no number.

    >>> import torch
    >>> from gradguard.wire import encode
    >>> decode(encode({"bias": torch.tensor([1.0, -2.0])}))
    {'bias': tensor([ 1., -2.])}
    """
    if not max_bytes >= 0:
        raise ValueError(f"max_bytes must be at least 0, got {max_bytes!r}")
    reader = Reader(opened(data))
    header = decode_header(reader)
    _check_size(header, max_bytes)
    shared = _Shared(header, reader)
    tasks = []
    for record in header.records:
        own = Reader(reader.take(record.length, what=f"tensor {record.name!r}"))
        tasks.append(_task(own, record, shared))
    shared.finish()
    tensors = in_threads(_decoded, tasks, [record.size for record in header.records])
    return {task.record.name: tensor for task, tensor in zip(tasks, tensors, strict=True)}


def _check_size(header: Header, max_bytes: int) -> None:
    total = sum(record.size * record.fmt.size for record in header.records)
    if total > max_bytes:
        raise WireError(
            f"these tensors take {total} bytes in memory, and max_bytes is {max_bytes}; raise it "
            "if the sender can be trusted"
        )


class _Shared:
    """Coordinates and values that belong to several tensors, handed out in order."""

    def __init__(self, header: Header, reader: Reader) -> None:
        own = Reader(reader.take(header.index_bytes, what="the indices"))
        indexed = header.end_to_end(Support.INDICES)
        indices = np.empty(0, dtype=np.int64)
        if header.indices:
            indices = decode_indices(own, count=header.indices, size=indexed)
        own.finish(what="the indices")
        drawn = draw_coordinates(header.seed, header.end_to_end(Support.SEED), header.drawn)
        self._coordinates = {Support.INDICES: indices, Support.SEED: drawn}
        self._at = {Support.INDICES: 0, Support.SEED: 0}
        self._pools = {}
        for pool in header.pools:
            stored = Reader(reader.take(pool.length, what="a pool"))
            self._pools[pool.fmt] = decode_planes(stored, pool.fmt, count=pool.count)
            stored.finish(what="a pool")
        self._taken = dict.fromkeys(self._pools, 0)

    def coordinates(self, record: Record) -> Indices:
        """Those of the next tensor, from its own beginning."""
        found, at = self._coordinates[record.support], self._at[record.support]
        self._at[record.support] = at + record.size
        first, last = np.searchsorted(found, (at, at + record.size))
        return found[first:last] - at

    def values(self, fmt: Format, count: int) -> Bits:
        """The next ``count`` values of a pool."""
        pool = self._pools.get(fmt, np.empty(0, dtype=fmt.bits))
        at = self._taken.get(fmt, 0)
        if at + count > len(pool):
            raise WireError(f"the pool of {fmt.name} holds {len(pool)} values: too few")
        self._taken[fmt] = at + count
        return pool[at : at + count]

    def finish(self) -> None:
        """Refuse coordinates and values that no tensor has taken."""
        for fmt, pool in self._pools.items():
            if self._taken[fmt] != len(pool) or not len(pool):
                raise WireError(f"the pool of {fmt.name} holds values that belong to no tensor")


@dataclass(frozen=True)
class _Task:
    """A tensor, the bytes that are its alone, and its part of what several share."""

    own: Reader
    record: Record
    where: Indices | NDArray[np.bool_] | None
    pooled: Bits | None


def _task(own: Reader, record: Record, shared: _Shared) -> _Task:
    where: Indices | NDArray[np.bool_] | None = None
    if record.support in (Support.BITMAP, Support.SIGNED_BITMAP):
        where = decode_bitmap(own, size=record.size)
    elif record.support is not Support.ALL:
        where = shared.coordinates(record)
    if where is None or record.tag != POOLED:
        return _Task(own, record, where, None)
    return _Task(own, record, where, shared.values(record.fmt, _count(where)))


def _count(where: Indices | NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(where)) if where.dtype == np.bool_ else len(where)


def _decoded(task: _Task) -> Tensor:
    own, record, where = task.own, task.record, task.where
    if where is None and record.tag == FACTORS:
        bits = decode_factors(own, record.fmt, count=record.size)
    elif where is None:
        bits = np.empty(record.size, dtype=record.fmt.bits)
        codec_by_tag(record.tag).decode(own, record.fmt, out=bits)
    elif record.support is Support.SIGNED_BITMAP:
        assert where.dtype == np.bool_
        bits = decode_signed_zeros(own, record.fmt, where=where.view(np.bool_))
        bits[where] = _kept(task) if task.pooled is None else task.pooled
    else:
        # Not torch.zeros: numpy asks for large pages, and a first touch of them is far quicker.
        bits = np.zeros(record.size, dtype=record.fmt.bits)
        bits[where] = _kept(task) if task.pooled is None else task.pooled
    own.finish(what=f"tensor {record.name!r}")
    return tensor_of(bits, record.fmt, record.shape)


def _kept(task: _Task) -> Bits:
    assert task.where is not None
    kept = np.empty(_count(task.where), dtype=task.record.fmt.bits)
    codec_by_tag(task.record.tag).decode(task.own, task.record.fmt, out=kept)
    return kept
