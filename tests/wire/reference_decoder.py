"""A slow decoder written from docs/wire.md alone, one value at a time; it checks nothing."""

from __future__ import annotations

import math
import zlib
from itertools import accumulate

import torch
from torch import Tensor

from gradguard.kernels.random_coordinates import draw_coordinates

DTYPES = {
    1: torch.float64, 2: torch.float32, 3: torch.float16, 4: torch.bfloat16,
    5: torch.float8_e4m3fn, 6: torch.float8_e5m2, 7: torch.float8_e4m3fnuz,
    8: torch.float8_e5m2fnuz, 16: torch.int64, 17: torch.int32, 18: torch.int16, 19: torch.int8,
    20: torch.uint64, 21: torch.uint32, 22: torch.uint16, 23: torch.uint8, 24: torch.bool,
}  # fmt: skip
BLOCK = 2**18


class Stream:
    """Bytes, read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        byte = self.byte()
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def section(self) -> bytes:
        method, stored = self.byte(), self.take(self.varint())
        if method == 2:
            import zstandard

            return zstandard.ZstdDecompressor().decompress(stored)
        return zlib.decompress(stored) if method == 1 else stored

    def number(self, dtype: torch.dtype) -> int:
        return int.from_bytes(self.take(dtype.itemsize), "little")


def decoded(message: bytes) -> dict[str, Tensor]:
    body = Stream(message[13:])
    body.varint()
    head = Stream(body.section())
    tensors, indices, gap_bytes, drawn = (head.varint() for _ in range(4))
    seed = int.from_bytes(head.take(8), "little") if drawn else 0
    pools = [(DTYPES[head.byte()], head.varint(), head.varint()) for _ in range(head.varint())]
    records = [_record(head) for _ in range(tensors)]
    sizes = {k: sum(math.prod(r[2]) for r in records if r[3] == k) for k in range(5)}
    gaps = _gaps(Stream(body.take(gap_bytes)), indices)
    places = {1: [at - 1 for at in accumulate(gap + 1 for gap in gaps)],
              3: draw_coordinates(seed, sizes[3], drawn).tolist()}  # fmt: skip
    pooled = {dtype: _pool(Stream(body.take(n)), dtype, count) for dtype, count, n in pools}
    found, at = {}, {1: 0, 3: 0}
    for name, dtype, shape, support, tag, length in records:
        own, size = Stream(body.take(length)), math.prod(shape)
        where = list(range(size))
        if support in (1, 3):
            start, at[support] = at[support], at[support] + size
            where = [p - start for p in places[support] if start <= p < start + size]
        bits = [0] * size
        if support in (2, 4):
            flags = own.section()
            where = [i for i in range(size) if flags[i // 8] >> i % 8 & 1]
        if support == 4:
            signs, others = own.section(), sorted({*range(size)} - {*where})
            for i, place in enumerate(others):
                bits[place] = (signs[i // 8] >> i % 8 & 1) << 8 * dtype.itemsize - 1
        for place, value in zip(where, _values(own, tag, dtype, len(where), pooled), strict=True):
            bits[place] = value
        data = b"".join(value.to_bytes(dtype.itemsize, "little") for value in bits)
        tensor = torch.empty(size, dtype=dtype)
        tensor.view(torch.uint8).copy_(torch.tensor(list(data), dtype=torch.uint8))
        found[name] = tensor.reshape(shape)
    return found


def _record(head: Stream) -> tuple[str, torch.dtype, tuple[int, ...], int, int, int]:
    name, dtype = head.take(head.varint()).decode(), DTYPES[head.byte()]
    support, tag = divmod(head.byte(), 16)
    shape = tuple(head.varint() for _ in range(head.byte()))
    return name, dtype, shape, support, tag, head.varint()


def _gaps(stream: Stream, count: int) -> list[int]:
    pieces = -(-count // 2**15)
    planes = [
        b"".join(stream.section() for _ in range(pieces))
        for _ in range(stream.byte() if count else 0)
    ]
    return [sum(plane[i] << 8 * p for p, plane in enumerate(planes)) for i in range(count)]


def _pool(stream: Stream, dtype: torch.dtype, count: int) -> list[int]:
    planes, width = [stream.section() for _ in range(dtype.itemsize)], 8 * dtype.itemsize
    turned = [sum(plane[i] << 8 * p for p, plane in enumerate(planes)) for i in range(count)]
    return [value >> 1 | (value & 1) << width - 1 for value in turned]


def _values(own: Stream, tag: int, dtype: torch.dtype, count: int,
            pooled: dict[torch.dtype, list[int]]) -> list[int]:  # fmt: skip
    if tag == 0:
        return [own.number(dtype) for _ in range(count)]
    if tag == 1:
        narrow = DTYPES[own.byte()]
        values = torch.tensor([own.number(narrow) for _ in range(count)])
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[narrow.itemsize]
        return _bits(values.to(kind).view(narrow).to(dtype))
    if tag == 2:
        palette = [own.number(dtype) for _ in range(own.varint())]
        return [palette[code] for code in _codes(own, count, (len(palette) - 1).bit_length(),
                                                 ternary=len(palette) == 3)]  # fmt: skip
    if tag == 3:
        width, largest = own.byte(), _number(own, dtype)
        steps = torch.tensor(2 ** (width - 1) - 1, dtype=dtype)
        codes = _codes(own, count, width)
        return [_bits((c - steps) / steps * largest)[0] for c in codes]
    if tag == 4:
        taken, pooled[dtype] = pooled[dtype][:count], pooled[dtype][count:]
        return taken
    kind, rows, rank = DTYPES[own.byte()], own.varint(), own.varint()
    columns = count // rows
    p, q = ([[_number(own, kind) for _ in range(rank)] for _ in range(n)] for n in (rows, columns))
    zero = torch.zeros((), dtype=kind)
    sums = [sum((a * b for a, b in zip(x, y, strict=True)), zero) for x in p for y in q]
    return [_bits(torch.as_tensor(total).to(dtype))[0] for total in sums]


def _codes(own: Stream, count: int, bits: int, *, ternary: bool = False) -> list[int]:
    found: list[int] = []
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        codes, shift = [0] * n, 0
        for width in (8, 8, 4, 2, 1) if not ternary else (0,):
            if ternary or bits - shift >= width:
                per = 5 if ternary else 8 // width
                size = -(-n // per)
                data = own.take(size)
                for i in range(n):
                    if width == 1:
                        digit = data[i // 8] >> i % 8 & 1
                    elif ternary:
                        digit = data[i % size] // 3 ** (i // size) % 3
                    else:
                        digit = data[i % size] >> width * (i // size) & (1 << width) - 1
                    codes[i] |= digit << shift
                shift += width
        found += codes
    return found


def _number(own: Stream, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(own.take(dtype.itemsize)), dtype=dtype)[0]


def _bits(values: Tensor) -> list[int]:
    data, size = values.reshape(-1).view(torch.uint8).tolist(), values.element_size()
    return [int.from_bytes(bytes(data[i : i + size]), "little") for i in range(0, len(data), size)]
