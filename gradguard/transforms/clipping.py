"""Bounds on the batch gradient: by its norm, or coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import check_finite, check_real, magnitudes
from gradguard.kernels.elementwise import copied, flattened

_ROW = 256  # squares are summed in single precision this far, and in double precision beyond
_SHORT = 4096  # below, double precision throughout is as quick
_SLACK = 1e-6  # twice what sums of 256 squares in single precision can be off by


def global_norm(grads: Grads) -> float:
    """L2 norm of all gradients taken together; absent ones count as zero.

    Squares are summed in double precision, or in single precision over few of them, so that no
    dtype overflows or loses small coordinates beside large ones. NaN and infinity come out as such.

    >>> global_norm([torch.tensor([3.0]), None, torch.tensor([[4.0]])])
    5.0
    """
    present = [flattened(g) for g in grads if g is not None and g.numel()]
    norm = _combined([part for flat in present for part in _in_rows(flat)])
    # Squares of single precision overflow beyond 1e19 and vanish below 1e-19.
    return norm if 1e-10 < norm < 1e18 else exact_norm(grads)


def exact_norm(grads: Grads) -> float:
    """As :func:`global_norm`, in double precision throughout: slower, and right to a rounding."""
    return _combined([flattened(g) for g in grads if g is not None and g.numel()])


def _combined(parts: Sequence[Tensor]) -> float:
    # Not for a whole gradient if it can be helped: torch converts a long tensor slowly.
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    if not norms:
        return 0.0
    together = torch.stack([norm.to(norms[0].device) for norm in norms])  # one look at a GPU's
    return math.hypot(*together.tolist())  # hypot scales by itself: finite parts do not overflow


def _in_rows(flat: Tensor) -> list[Tensor]:
    """Few numbers with the same norm: those of rows of 256 coordinates, and the rest."""
    if flat.dtype != torch.float32 or len(flat) < _SHORT:
        return [flat]
    even = len(flat) // _ROW * _ROW
    return [torch.linalg.vector_norm(flat[:even].view(-1, _ROW), dim=1), flat[even:]]


def _scale_(grads: Sequence[Tensor], scale: float) -> None:
    """Multiply in place, by the next smaller factor where ``scale`` has to be rounded."""
    single = np.float32(scale)
    if single > scale:
        single = np.nextafter(single, np.float32(0))
    # A small bound over a huge norm is below float32's range, and far below that of float16.
    direct = {torch.float64: scale, torch.float32: float(single) if scale > 1e-30 else 0.0}
    for dtype, factor in direct.items():
        if factor and (group := [g for g in grads if g.dtype == dtype]):
            torch._foreach_mul_(group, factor)
    for grad in grads:
        if not direct.get(grad.dtype):
            grad.copy_(grad.double().mul_(scale))


@dataclass(frozen=True)
class ClipByGlobalNorm:
    """Scale the whole gradient down so that its L2 norm is at most ``max_norm``.

    Guarantees, for finite gradients ``g`` with output ``h``:

    - ``|h| <= max_norm``, up to one rounding of the gradient's dtype, and no less than a
      millionth below it where ``|g|`` is larger, which covers the rounding of the norm itself;
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
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_real(grads)
        norm = global_norm(grads)
        if not math.isfinite(norm):
            check_finite(grads)
        if abs(norm - self.max_norm) <= _SLACK * self.max_norm:
            norm = exact_norm(grads)
        if norm <= self.max_norm:
            return grads, state
        present = [g for g in grads if g is not None]
        if math.isinf(norm):  # float64 gradients beyond 1e154: their squares overflow
            largest = max(magnitudes(grads))
            for grad in present:
                grad.div_(largest)
            # Two factors, because largest * norm may overflow where each of them does not.
            norm = global_norm(grads)
        quick = any(g.dtype == torch.float32 and g.numel() >= _SHORT for g in present)
        _scale_(present, self.max_norm / norm * (1 - _SLACK * quick))
        return grads, state


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
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        for grad, largest in zip(grads, magnitudes(grads), strict=True):
            if grad is not None and largest > (limit := _limit(self.max_abs, grad.dtype)):
                grad.clamp_(-limit, limit)
        return grads, state


def _limit(max_abs: float, dtype: torch.dtype) -> float:
    # The bound itself rounds, and clamp would round it to nearest: a hair above it, at times.
    most = min(max_abs, torch.finfo(dtype).max)
    bound = torch.tensor(most, dtype=torch.float64, device="cpu")
    rounded = bound.to(dtype)
    if rounded > bound:
        # One step down in the dtype itself: positive numbers are ordered as their bits are.
        words = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        rounded = (rounded.view(words) - 1).view(dtype)
    return rounded.item()
