"""Applying a function to each gradient while keeping its dtype, device, shape and layout.

Either to whole tensors, with :func:`map_present`, or in place and piece by piece, with
:func:`overwrite`: what a transform does to a piece after the first step then finds it in the cache,
and no second copy of the gradient is ever allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradguard.core import Grads
from gradguard.finite import NonFiniteGradientError, check_finite, is_finite
from gradguard.kernels.memory_order import in_memory_order

PIECE = 2**18
"""Elements worked on at once; a megabyte of single precision stays in the cache."""
_SHORTEST = 16  # torch draws normal numbers by sixteen, and fewer in another way


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


def copied(grads: Grads) -> Grads:
    """Copies in memory of their own, in the same layout; one with gaps or overlaps is closed."""
    return [None if g is None else g.detach().clone() for g in grads]


def flattened(grad: Tensor) -> Tensor:
    """All elements in the order in which they lie; a copy where the layout has gaps or overlaps.

    So that sums, which round, are the same for a gradient and for what :func:`copied` makes of it.
    """
    flat = in_memory_order(grad)
    if flat is None:
        flat = in_memory_order(grad.detach().clone())
    assert flat is not None  # a copy has neither
    return flat


def pieces(flat: Tensor, *, size: int = PIECE) -> Iterator[Tensor]:
    """A flat tensor in runs of about ``size`` elements; whole where it is not on the CPU.

    No run is shorter than sixteen unless the whole is.

    >>> [len(piece) for piece in pieces(torch.zeros(2 * PIECE + 3))] == [PIECE, PIECE + 3]
    True
    """
    if len(flat) < size + _SHORTEST or flat.device.type != "cpu":
        yield flat
        return
    starts = list(range(0, len(flat) - _SHORTEST + 1, size))
    for start, end in zip(starts, [*starts[1:], len(flat)], strict=True):
        yield flat[start:end]


def overwrite(
    grad: Tensor,
    function: Callable[[Tensor], object],
    *,
    index: int,
    most: float,
    row_major: bool = False,
) -> None:
    """Let ``function`` overwrite all of ``grad``, piece by piece, where it lies.

    Args:
        grad: Any layout and floating dtype.
        function: Overwrites its argument, flat and of at least single precision.
        index: Of the parameter, for errors.
        most: No result is larger; where that may not fit the dtype, the results are looked at.
        row_major: Whether pieces must follow one another as the indices do, and not as the memory
            does. It costs a copy where the two differ, and makes random numbers fall on the same
            coordinates in every layout.

    Raises:
        NonFiniteGradientError: A result does not fit the dtype. ``grad`` may have been written to.

    >>> grad = torch.ones(2, 3).t()
    >>> overwrite(grad, lambda piece: piece.mul_(2), index=0, most=2.0)
    >>> grad.sum()
    tensor(12.)
    """
    if grad.numel() == 0:
        return
    wide = grad.dtype if grad.dtype.itemsize >= 4 else torch.float32
    flat = grad.view(-1) if grad.is_contiguous() else None if row_major else in_memory_order(grad)
    if flat is None or grad.dtype != wide:
        layout = torch.contiguous_format if row_major else torch.preserve_format
        values = grad.to(wide, copy=True, memory_format=layout)
        dense = in_memory_order(values)
        assert dense is not None  # a copy has neither gaps nor overlaps
        for piece in pieces(dense):
            function(piece)
        grad.copy_(values)
        if grad.dtype != wide:
            grad.add_(0.0)  # rounded to zero, a value must not show its sign
    else:
        for piece in pieces(flat):
            function(piece)
    # Written so that NaN is looked at too.
    if not most < torch.finfo(grad.dtype).max and not is_finite(grad):
        raise does_not_fit(grad.dtype, index)


def widen(grad: Tensor) -> Tensor:
    """At least float32: sums and products of half-precision numbers overflow at 65,504."""
    return grad if grad.dtype in (torch.float32, torch.float64) else grad.float()


def restore(values: Tensor, like: Tensor, *, index: int) -> Tensor:
    """``values`` with the dtype and memory layout of ``like``; overflow is refused.

    A layout with gaps or overlaps cannot be kept; it becomes a dense one of the same order.
    """
    if values.dtype != like.dtype:
        values = values.to(like.dtype) + 0.0  # rounded to zero, a value must not show its sign
    # Also where the dtype is the same: noise and rescaling may pass the largest number.
    if not is_finite(values):
        raise does_not_fit(like.dtype, index)
    if values.stride() == like.stride():
        return values
    return torch.empty_like(like).copy_(values)


def does_not_fit(dtype: torch.dtype, index: int) -> NonFiniteGradientError:
    """The error for a result that is too large."""
    return NonFiniteGradientError(index, what=f"does not fit {dtype} after the transform")
