"""Applying a function to each gradient while keeping its dtype, device, shape and layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradguard.core import Grads
from gradguard.finite import NonFiniteGradientError, check_finite, is_finite


def map_present(function: Callable[[Tensor], Tensor], grads: Grads) -> Grads:
    """Apply ``function`` to every gradient that is there, after refusing NaN and infinity.

    ``function`` sees at least float32 and its result is brought back to the gradient's dtype and
    memory layout. ``None`` and empty gradients pass.

    Raises:
        NonFiniteGradientError: An input is not finite, or a result does not fit the dtype.

    >>> map_present(lambda g: g * 2, [torch.ones(2, dtype=torch.float16), None])
    [tensor([2., 2.], dtype=torch.float16), None]
    """
    check_finite(grads)
    return [
        g if g is None or g.numel() == 0 else restore(function(widen(g)), g, index=i)
        for i, g in enumerate(grads)
    ]


def widen(grad: Tensor) -> Tensor:
    """At least float32: sums and products of half-precision numbers overflow at 65,504."""
    return grad if grad.dtype in (torch.float32, torch.float64) else grad.float()


def restore(values: Tensor, like: Tensor, *, index: int) -> Tensor:
    """``values`` with the dtype and memory layout of ``like``; overflow is refused.

    A layout with gaps or overlaps cannot be kept; it becomes a dense one of the same order.
    """
    values = values.to(like.dtype)
    # Also where the dtype is the same: noise and rescaling may pass the largest number.
    if not is_finite(values):
        what = f"does not fit {like.dtype} after the transform"
        raise NonFiniteGradientError(index, what=what)
    if values.stride() == like.stride():
        return values
    return torch.empty_like(like).copy_(values)
