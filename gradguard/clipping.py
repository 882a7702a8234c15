"""Bounds on the batch gradient: by its norm, or coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.elementwise import map_present
from gradguard.finite import check_finite


def global_norm(grads: Grads) -> float:
    """L2 norm of all gradients taken together; absent ones count as zero.

    Squares accumulate in float64, so half and single precision never overflow.

    >>> global_norm([torch.tensor([3.0]), None, torch.tensor([[4.0]])])
    5.0
    """
    norms = [
        torch.linalg.vector_norm(g, dtype=torch.float64).item() for g in grads if g is not None
    ]
    return math.hypot(*norms)  # hypot scales by itself: no overflow while the parts are finite


@dataclass(frozen=True)
class ClipByGlobalNorm:
    """Scale the whole gradient down so that its L2 norm is at most ``max_norm``.

    Guarantees, for finite gradients ``g`` with output ``h``:

    - ``|h| <= max_norm``, up to one rounding of the gradient's dtype;
    - ``h`` is a non-negative multiple of ``g``;
    - if ``|g| <= max_norm`` then ``h == g`` exactly.

    This bounds the *batch* gradient. It is not per-example clipping and gives no
    differential-privacy guarantee, with or without noise after it.

    Args:
        max_norm: Bound in gradient units, after any loss scaling is undone; positive.

    >>> ClipByGlobalNorm(1.0).update([torch.tensor([3.0, 4.0])], {})[0]
    [tensor([0.6000, 0.8000])]
    """

    max_norm: float
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        if not self.max_norm > 0:  # written so that NaN fails too
            raise ValueError(f"max_norm must be positive, got {self.max_norm!r}")

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        norm = global_norm(grads)
        if norm <= self.max_norm:
            return list(grads), state
        if math.isinf(norm):  # float64 gradients beyond 1e154: their squares overflow
            largest = max(g.abs().max().item() for g in grads if g is not None and g.numel())
            scaled = global_norm([None if g is None else g / largest for g in grads])
            # Two factors, because largest * scaled may overflow where each of them does not.
            factor = self.max_norm / scaled
            return map_present(lambda g: g / largest * factor, grads), state
        # In float64: the ratio of a small bound to a huge norm is below float32's range.
        scale = self.max_norm / norm
        return map_present(lambda g: (g.double() * scale).to(g.dtype), grads), state


@dataclass(frozen=True)
class ClipByValue:
    """Clamp every coordinate to ``[-max_abs, max_abs]``.

    Guarantees:

    - no coordinate exceeds ``max_abs`` in magnitude, rounding to the gradient's dtype included;
    - coordinates within the bound are unchanged.

    It changes the direction of the gradient and gives no differential-privacy guarantee.

    Args:
        max_abs: Bound in gradient units; positive.

    >>> ClipByValue(0.5).update([torch.tensor([0.2, -3.0])], {})[0]
    [tensor([ 0.2000, -0.5000])]
    """

    max_abs: float
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        if not self.max_abs > 0:
            raise ValueError(f"max_abs must be positive, got {self.max_abs!r}")

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        return [None if g is None else _clamped(g, self.max_abs) for g in grads], state


def _clamped(grad: Tensor, max_abs: float) -> Tensor:
    # The bound itself rounds, and clamp would round it to nearest: a hair above it, at times.
    bound = torch.tensor(min(max_abs, torch.finfo(grad.dtype).max), dtype=torch.float64)
    rounded = bound.to(grad.dtype)
    if rounded > bound:
        # One step down in the dtype itself: positive numbers are ordered as their bits are.
        words = {2: torch.int16, 4: torch.int32}[grad.dtype.itemsize]
        rounded = (rounded.view(words) - 1).view(grad.dtype)
    limit = rounded.item()
    return grad.clamp(-limit, limit)
