"""Long tensors are worked on in blocks that stay in the cache, with buffers that are used again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradguard.kernels.scratch import scratch

BLOCK = 2**18
"""Elements of one block; part of the format. The last block of a tensor may be shorter."""

_SMALL = 2**14
_TORCH = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(bool): torch.bool,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.uint32): torch.int32,
}


def blocks(size: int) -> Iterator[slice]:
    """The blocks of a tensor of ``size`` elements.

    >>> list(blocks(BLOCK + 1))
    [slice(0, 262144, None), slice(262144, 262145, None)]
    """
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def buffer(name: str, size: int, dtype: Any) -> NDArray[Any]:
    """Memory of at most one block that the next call with this name uses again."""
    kind = np.dtype(dtype)
    if size < _SMALL:  # allocating so little takes less time than finding the buffer
        return np.empty(size, dtype=kind)
    return scratch(f"wire.{name}", size, _TORCH[kind]).numpy().view(kind)
