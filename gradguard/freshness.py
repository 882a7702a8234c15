"""Telling a fresh gradient from one that was already transformed.

Transforming a gradient twice sends something else than intended: a top-k of a top-k, or noise
upon noise. A flag set on tensors (as some libraries do) is lost by copies and seen by nobody; the
tensor's own version counter changes with every in-place write, backward's accumulation included.
Only writes through ``.data`` escape it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Fingerprint = list[tuple["weakref.ref[Tensor]", int]]


def fingerprint(params: Sequence[Tensor]) -> Fingerprint:
    """Identity and version of every gradient, without keeping any of them alive."""
    # A strong reference would hold the gradients over zero_grad() and double their memory.
    present = [grad for p in params if (grad := p.grad) is not None]
    return [(weakref.ref(grad), version(grad)) for grad in present]


def unchanged(params: Sequence[Tensor], since: Fingerprint) -> list[bool]:
    """For every gradient that is there: is it a tensor of ``since``, unwritten since then?

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
    seen = {id(grad): count for ref, count in since if (grad := ref()) is not None}
    present = [grad for p in params if (grad := p.grad) is not None]
    return [seen.get(id(grad)) == version(grad) for grad in present]


def version(tensor: Tensor) -> int:
    """How often ``tensor`` was written to.

    Raises:
        RuntimeError: It was made in inference mode, where torch does not count.
    """
    if tensor.is_inference():
        raise RuntimeError(
            "a gradient, or a tensor in the guard's state, was made under torch.inference_mode(), "
            "where torch counts no writes: a gradient that was already transformed could not be "
            "told from a fresh one. Nothing was sent or applied. Compute gradients outside "
            "inference mode, or clone() them there"
        )
    return tensor._version


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave inference mode for a while: what is made in it can never again be written to.

    Elsewhere it changes nothing, not even whether gradients are recorded.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list):
        for held in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(held)


def versions(value: Any) -> list[int]:
    """How often each tensor in ``value`` was written to.

    >>> state = {"memory": [torch.zeros(2), None]}
    >>> before = versions(state)
    >>> _ = state["memory"][0].add_(1.0)
    >>> versions(state) == before
    False
    """
    return [version(tensor) for tensor in tensors_in(value)]
