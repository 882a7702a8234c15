"""Low-rank tensors, as the two factors that they are the product of.

The factors cannot be found again in the bits of their product; the sender gives them. They are
used only where :func:`gradguard.kernels.low_rank_product.outer_sum` gives the tensor bit by bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradguard.kernels.low_rank_product import outer_sum
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
    if rows * columns != len(bits) or not _is_shorter(rows, columns, rank) or not _holds(fmt):
        return None
    product = outer_sum(p.detach().cpu(), q.detach().cpu()).to(fmt.dtype)
    if not np.array_equal(bits_of(product), bits):
        return None
    head = bytes((format_of(name, p).code,)) + varint(rows) + varint(rank)
    return [head, bits_of(p).view(np.uint8).data, bits_of(q).view(np.uint8).data]


def decode_factors(reader: Reader, fmt: Format, *, count: int) -> Bits:
    """The bits of the product, ``count`` of them."""
    kind = format_by_code(reader.byte(what="the dtype of factors"))
    rows = reader.varint(what="rows of a factor", most=count)
    rank = reader.varint(what="a rank", most=count)
    if kind not in (FLOAT32, FLOAT64) or not _holds(fmt) or not rows or count % rows:
        raise WireError(f"{count} values of {fmt.name} cannot be {rows} rows of a product")
    columns = count // rows
    if not _is_shorter(rows, columns, rank):
        raise WireError(f"factors of rank {rank} must be smaller than {rows} x {columns}")
    p, q = (_factor(reader, kind, length, rank) for length in (rows, columns))
    return bits_of(outer_sum(p, q).to(fmt.dtype))


def _factor(reader: Reader, kind: Format, length: int, rank: int) -> Tensor:
    stored = reader.take(length * rank * kind.size, what="a factor")
    values = np.frombuffer(stored, dtype=kind.numbers).copy()
    return torch.from_numpy(values).reshape(length, rank)


def _is_shorter(rows: int, columns: int, rank: int) -> bool:
    return (rows + columns) * rank < rows * columns


def _holds(fmt: Format) -> bool:
    return fmt.dtype in _FLOATS
