"""Tensors as flat runs of numbers in the order in which they lie in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def in_memory_order(tensor: Tensor) -> Tensor | None:
    """A flat view without gaps, whatever the layout; ``None`` where there is none.

    Guarantees:

    - it shares memory with ``tensor`` and needs no copy, channels-last and transposed included;
    - two tensors of the same shape and strides are laid out alike.

    >>> import torch
    >>> in_memory_order(torch.tensor([[1, 2], [3, 4]]).t())
    tensor([1, 2, 3, 4])
    >>> in_memory_order(torch.ones(1).expand(3)) is None
    True
    """
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor.view(-1)
    turned = tensor.permute(_order(tensor))
    return turned.view(-1) if turned.is_contiguous() else None


def row_major(tensor: Tensor, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where elements of the flat view stand in row-major order.

    >>> import torch
    >>> row_major(torch.zeros(2, 3).t(), np.array([0, 1, 2, 3]))
    array([0, 2, 4, 1])
    """
    if tensor.is_contiguous():
        return positions
    order = _order(tensor)
    along = np.unravel_index(positions, [tensor.shape[d] for d in order])
    # One array of coordinates for each dimension of memory; sorted back into the tensor's own.
    found = np.ravel_multi_index([along[order.index(d)] for d in range(tensor.ndim)], tensor.shape)
    return np.asarray(found, dtype=np.int64)


def from_row_major(tensor: Tensor, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in the flat view elements lie whose places in row-major order are given.

    >>> import torch
    >>> from_row_major(torch.zeros(2, 3).t(), np.array([0, 2, 4, 1]))
    array([0, 1, 2, 3])
    """
    if tensor.is_contiguous():
        return places
    order = _order(tensor)
    along = np.unravel_index(places, tensor.shape)
    found = np.ravel_multi_index([along[d] for d in order], [tensor.shape[d] for d in order])
    return np.asarray(found, dtype=np.int64)


def _order(tensor: Tensor) -> list[int]:
    """Dimensions from the slowest in memory to the fastest."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda d: -strides[d])
