"""The product of low-rank factors, in an order of operations that every machine repeats.

A matrix product is summed in blocks whose shape depends on the processor, the library and the
number of threads, so its last bits differ between a sender and a receiver. Here every element is
the sum of its products from the first column to the last, each product and each sum rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS_OF = 2**16  # elements of the product that are summed at a time: they stay in the cache


def outer_sum(p: Tensor, q: Tensor) -> Tensor:
    """``p @ q.T``, as the sum of one outer product per column, from the first to the last.

    Guarantees:

    - bitwise the same on every processor and for every number of threads;
    - no zero in it is -0.0.

    As long as every column is added, no rounding error grows faster than with ``p @ q.T``; the
    bits may differ from it.

    Args:
        p: Left factor, shape (n, r), float32 or float64.
        q: Right factor, shape (m, r), the same dtype.

    Returns:
        The product, shape (n, m); zeros if r is 0.

    Raises:
        ValueError: The factors are not matrices of one rank and one of these dtypes.

    >>> outer_sum(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise ValueError(
            f"factors must be matrices of shapes (n, r) and (m, r), got {tuple(p.shape)} and "
            f"{tuple(q.shape)}"
        )
    if p.dtype != q.dtype or p.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"factors must both be float32 or both float64, got {p.dtype} and {q.dtype}"
        )
    # From zeros: 0.0 + -0.0 is 0.0, so the sign of a vanishing product is not kept.
    total = torch.zeros(p.shape[0], q.shape[0], dtype=p.dtype, device=p.device)
    columns = q.t().contiguous()
    rows = max(1, _ROWS_OF // max(1, q.shape[0]))
    for start in range(0, p.shape[0], rows):
        block = total[start : start + rows]
        for k in range(p.shape[1]):
            # Not addcmul or addr: they may round the product and the sum together, or may not.
            block += p[start : start + rows, k : k + 1] * columns[k]
    return total
