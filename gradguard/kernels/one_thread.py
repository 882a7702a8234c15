"""Sums and products of a piece on one thread, because what comes before or after works on one.

torch divides even a short loop among its threads. numpy, which compares and finds several times
faster, and torch's own drawing of random numbers work on one: half of every piece is then fetched
from another processor's cache, which on two cores takes longer than the second thread has saved.
Python's own threads, one for each half of the pieces, do not help either: each of them waits after
every loop for the interpreter's lock.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_KNOWN = (torch.float32, torch.float64)


def multiply(values: Tensor, factor: float, *, out: Tensor) -> Tensor:
    """``values * factor``, rounded once, in ``out``; bitwise what torch gives.

    >>> multiply(torch.tensor([1.0, 2.0]), 0.5, out=torch.empty(2))
    tensor([0.5000, 1.0000])
    """
    if not _numpy_knows(values, out):
        return torch.mul(values, factor, out=out)
    _announce(out)
    with np.errstate(all="ignore"):
        np.multiply(values.numpy(), factor, out=out.numpy())
    return out


def add(first: Tensor, second: Tensor, *, out: Tensor) -> Tensor:
    """``first + second``, rounded once, in ``out``; bitwise what torch gives.

    >>> add(torch.ones(2), torch.ones(2), out=torch.empty(2))
    tensor([2., 2.])
    """
    if not _numpy_knows(first, second, out):
        return torch.add(first, second, out=out)
    _announce(out)
    with np.errstate(all="ignore"):
        np.add(first.numpy(), second.numpy(), out=out.numpy())
    return out


def _numpy_knows(*tensors: Tensor) -> bool:
    return all(t.is_cpu and t.dtype in _KNOWN and not t.is_neg() for t in tensors)


def _announce(out: Tensor) -> None:
    """Count a write that torch does not see; tensors of inference mode have no count."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
