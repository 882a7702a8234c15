"""Scaled signs: one bit per coordinate and one magnitude per tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import NonFiniteGradientError, check_real, is_finite
from gradguard.kernels.elementwise import copied, does_not_fit, flattened, overwrite, pieces
from gradguard.kernels.scratch import scratch


@dataclass(frozen=True)
class Sign:
    """Replace every coordinate by its sign times the tensor's mean magnitude.

    Guarantees:

    - every non-zero coordinate keeps its sign, and a zero stays zero, unless the mean magnitude
      is too small for the gradient's dtype: all are ``+0.0`` then;
    - the sum of magnitudes over each tensor without zeros is kept, up to rounding the mean to the
      gradient's dtype.

    The result is biased: wrap it in ``ErrorFeedback`` to train well. It does not hide labels;
    signs alone give most of them away.

    Sai Praneeth Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", 2019, arXiv:1901.09847 (the scaled sign).

    >>> Sign().update([torch.tensor([1.0, -3.0]), torch.tensor([0.0])], {})[0]
    [tensor([ 2., -2.]), tensor([0.])]
    """

    reads: ClassVar[Reads] = "input"

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_real(grads)
        means = [0.0 if g is None else _mean_magnitude(g, index=i) for i, g in enumerate(grads)]
        for index, (grad, mean) in enumerate(zip(grads, means, strict=True)):
            if grad is not None:
                overwrite(grad, partial(_scale_signs_, by=mean), index=index, most=mean)
        return grads, state


def _scale_signs_(piece: Tensor, *, by: float) -> None:
    piece.sign_().mul_(by)


def _mean_magnitude(grad: Tensor, *, index: int) -> float:
    if grad.numel() == 0:
        return 0.0
    flat = flattened(grad)
    if grad.dtype.itemsize < 4:
        flat = flat.double()
    total = 0.0
    for piece in pieces(flat):
        held = scratch("sign.magnitude", len(piece), piece.dtype, device=piece.device)
        total += torch.abs(piece, out=held).sum().item()
    if not math.isfinite(total):
        if not is_finite(grad):
            raise NonFiniteGradientError(index)
        # A float32 sum of large magnitudes overflows, and then takes double precision.
        total = flat.abs().sum(dtype=torch.float64).item()
    if math.isinf(total):
        raise does_not_fit(grad.dtype, index)
    return total / grad.numel()
