"""Telling a fresh gradient from one that was already transformed.

Transforming a gradient twice sends something else than intended: a top-k of a top-k, or noise
upon noise. A flag set on tensors (as some libraries do) is lost by copies and seen by nobody; the
tensor's own version counter changes with every in-place write, backward's accumulation included.
Only writes through ``.data`` escape it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

Fingerprint = list[tuple["weakref.ref[Tensor]", int]]


def fingerprint(params: Sequence[Tensor]) -> Fingerprint:
    """Identity and version of every gradient, without keeping any of them alive."""
    # A strong reference would hold the gradients over zero_grad() and double their memory.
    present = [grad for p in params if (grad := p.grad) is not None]
    return [(weakref.ref(grad), grad._version) for grad in present]


def unchanged(params: Sequence[Tensor], since: Fingerprint) -> list[bool]:
    """For every gradient that is there: is it a tensor of ``since``, unwritten since then?

    >>> import torch
    >>> p = torch.zeros(2, requires_grad=True)
    >>> p.sum().backward()
    >>> before = fingerprint([p])
    >>> unchanged([p], before)
    [True]
    >>> p.sum().backward()
    >>> unchanged([p], before)
    [False]
    """
    # By identity, not by position: some gradients may have been removed or added since.
    seen = {id(grad): version for ref, version in since if (grad := ref()) is not None}
    present = [grad for p in params if (grad := p.grad) is not None]
    return [seen.get(id(grad)) == grad._version for grad in present]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list):
        for held in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(held)


def versions(value: Any) -> list[int]:
    """How often each tensor in ``value`` was written to.

    >>> import torch
    >>> state = {"memory": [torch.zeros(2), None]}
    >>> before = versions(state)
    >>> _ = state["memory"][0].add_(1.0)
    >>> versions(state) == before
    False
    """
    return [tensor._version for tensor in tensors_in(value)]
