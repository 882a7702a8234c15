"""Telling a fresh gradient from one that was already transformed.

Transforming a gradient twice sends something else than intended: a top-k of a top-k, or noise
upon noise. A flag set on tensors (as some libraries do) is lost by copies and seen by nobody; the
tensor's own version counter changes with every in-place write, backward's accumulation included.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

Fingerprint = list[tuple["weakref.ref[Tensor]", int]]


def fingerprint(params: Sequence[Tensor]) -> Fingerprint:
    """Identity and version of every gradient, without keeping any of them alive."""
    # A strong reference would hold the gradients over zero_grad() and double their memory.
    return [(weakref.ref(p.grad), p.grad._version) for p in params if p.grad is not None]


def unchanged(params: Sequence[Tensor], since: Fingerprint) -> bool:
    """Whether there are gradients and all are the very tensors, unwritten since, of ``since``.

    >>> import torch
    >>> p = torch.zeros(2, requires_grad=True)
    >>> p.sum().backward()
    >>> before = fingerprint([p])
    >>> unchanged([p], before)
    True
    >>> p.sum().backward()
    >>> unchanged([p], before)
    False
    """
    present = [p.grad for p in params if p.grad is not None]
    if not present or len(present) != len(since):
        return False
    pairs = zip(present, since, strict=True)
    return all(ref() is grad and version == grad._version for grad, (ref, version) in pairs)
