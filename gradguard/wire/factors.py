"""Low-rank tensors, as the two factors that they are the product of.

The factors cannot be found again in the bits of their product; the sender gives them. They are
used only where :func:`gradguard.kernels.low_rank_product.outer_sum` gives the tensor bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gradguard.kernels.low_rank_product import outer_sum
from gradguard.wire.blocks import BLOCK
from gradguard.wire.errors import WireError
from gradguard.wire.formats import (
    FLOAT32,
    FLOAT64,
    Bits,
    Format,
    Parts,
    bits_of,
    format_by_code,
    format_of,
)
from gradguard.wire.reader import Reader, varint

TAG, NAME = 5, "factors"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COLUMNS = 2**12  # of a block of the product; many rows share one transposed piece of q
_MANTISSA, _INFINITE = {FLOAT32: 23, FLOAT64: 52}, {FLOAT32: 0xFF, FLOAT64: 0x7FF}


def encode_factors(
    bits: Bits, fmt: Format, factors: tuple[Tensor, Tensor], name: str
) -> Parts | None:
    """The dtype of the factors, rows, rank and both factors; ``None`` if they do not fit."""
    p, q = factors
    for factor in factors:
        if format_of(f"a factor of {name}", factor) not in (FLOAT32, FLOAT64):
            raise TypeError(f"factors of {name!r} must be float32 or float64, got {factor.dtype}")
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1] or p.dtype != q.dtype:
        raise ValueError(
            f"factors of {name!r} must be (n, r) and (m, r) of one dtype, got {tuple(p.shape)} "
            f"{p.dtype} and {tuple(q.shape)} {q.dtype}"
        )
    (rows, rank), columns = p.shape, q.shape[0]
    kind = format_of(name, p)
    if rows * columns != len(bits) or not _is_shorter(kind, fmt, rows, columns, rank):
        return None
    p, q = p.detach().cpu(), q.detach().cpu()
    if not (_repeats(p, q, kind) and _is_product(bits, fmt, p, q)):
        return None
    head = bytes((kind.code,)) + varint(rows) + varint(rank)
    return [head, bits_of(p).view(np.uint8).data, bits_of(q).view(np.uint8).data]


def decode_factors(reader: Reader, fmt: Format, *, count: int) -> Bits:
    """The bits of the product, ``count`` of them."""
    kind = format_by_code(reader.byte(what="the dtype of factors"))
    rows = reader.varint(what="rows of a factor", most=count)
    rank = reader.varint(what="a rank", most=count)
    if kind not in (FLOAT32, FLOAT64) or fmt.dtype not in _FLOATS or not rows or count % rows:
        raise WireError(f"{count} values of {fmt.name} cannot be {rows} rows of a product")
    columns = count // rows
    if not _is_shorter(kind, fmt, rows, columns, rank):
        raise WireError(
            f"factors of rank {rank} in {kind.name} must be smaller than {rows} x {columns} "
            f"values of {fmt.name}, and rank 0 has none"
        )
    p, q = (_factor(reader, kind, length, rank) for length in (rows, columns))
    if not _repeats(p, q, kind):
        raise WireError("factors must be finite and their products no subnormal numbers")
    out = np.empty(count, dtype=fmt.bits)
    for row, column, block in _product_blocks(p, q, fmt):
        if bool(block.isnan().any()):
            raise WireError("a product of factors must not be NaN")
        out.reshape(rows, columns)[row, column] = bits_of(block).reshape(block.shape)
    return out


def _is_product(bits: Bits, fmt: Format, p: Tensor, q: Tensor) -> bool:
    whole = bits.reshape(len(p), len(q))
    return all(
        np.array_equal(bits_of(block).reshape(block.shape), whole[row, column])
        and not bool(block.isnan().any())
        for row, column, block in _product_blocks(p, q, fmt)
    )


def _product_blocks(p: Tensor, q: Tensor, fmt: Format) -> Iterator[tuple[slice, slice, Tensor]]:
    """The product piece by piece, so that a wider one never exists as a whole."""
    for start in range(0, len(q), _COLUMNS):
        column = slice(start, min(start + _COLUMNS, len(q)))
        step = BLOCK // (column.stop - column.start)
        for top in range(0, len(p), step):
            row = slice(top, min(top + step, len(p)))
            yield row, column, outer_sum(p[row], q[column]).to(fmt.dtype)


def _repeats(p: Tensor, q: Tensor, kind: Format) -> bool:
    """Whether a machine that takes subnormal numbers for zero gets the same product.

    Products that are so much larger than these are multiples of a number that is no subnormal,
    and so are their sums. Only bits are looked at: this machine may be such a one.
    """
    infinite, lowest = _INFINITE[kind], 0
    for factor in (p, q):
        exponents = (bits_of(factor) >> _MANTISSA[kind]) & infinite
        least = int(exponents[(bits_of(factor) << 1) != 0].min(initial=infinite))
        if not least or int(exponents.max(initial=0)) == infinite:
            return False
        lowest += least - infinite // 2
    # A mantissa above the least normal exponent, and one bit to spare.
    return lowest >= 1 - infinite // 2 + _MANTISSA[kind] + 1


def _factor(reader: Reader, kind: Format, length: int, rank: int) -> Tensor:
    stored = reader.take(length * rank * kind.size, what="a factor")
    values = np.frombuffer(stored, dtype=kind.numbers).copy()
    return torch.from_numpy(values).reshape(length, rank)


def _is_shorter(kind: Format, fmt: Format, rows: int, columns: int, rank: int) -> bool:
    if fmt.dtype not in _FLOATS or kind.size > max(FLOAT32.size, fmt.size):
        return False
    return 0 < (rows + columns) * rank * kind.size < rows * columns * fmt.size
