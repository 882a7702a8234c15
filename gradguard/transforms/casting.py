"""Sending the gradient in a narrower format: half precision, eight bits, or scaled integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import NonFiniteGradientError, magnitudes
from gradguard.kernels.elementwise import copied, overwrite
from gradguard.kernels.scratch import scratch
from gradguard.transforms.quantization import scaled_, unscaled_

Format = Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"]
_INT8 = 127  # and not 128, so that both signs have as many steps


@dataclass(frozen=True)
class Cast:
    """Round every coordinate to ``dtype`` and back to the gradient's own dtype.

    Guarantees:

    - every value is one that ``dtype`` can hold; a second cast changes nothing;
    - a value too large for ``dtype`` raises. It is neither sent as infinity nor cut to the
      largest number, because both would change the gradient without a word;
    - a value too small for ``dtype`` becomes ``+0.0``: not even its sign is sent.

    With the 8-bit floating formats, which are not scaled, most of a gradient can be too small.
    ``"int8"`` is scaled: 127 steps up to the largest magnitude in each tensor, which is sent along
    with it, and rounding to the nearest, ties to even. Nothing is too large for it. It is biased,
    where :class:`~gradguard.transforms.quantization.Quantize` is not. No format hides labels.

    Args:
        dtype: ``"float16"``, ``"bfloat16"``, ``"float8_e4m3fn"``, ``"float8_e5m2"`` or ``"int8"``.

    Raises:
        NonFiniteGradientError: A value does not fit.

    >>> Cast("bfloat16").update([torch.tensor([1.0, 3.14159])], {})[0]
    [tensor([1.0000, 3.1406])]
    """

    dtype: Format
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Format):
            raise ValueError(
                f"dtype must be one of {', '.join(get_args(Format))}; got {self.dtype!r}"
            )

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        largest = magnitudes(grads)
        if self.dtype != "int8":
            _check_fits(largest, getattr(torch, self.dtype))
        for index, (grad, most) in enumerate(zip(grads, largest, strict=True)):
            if grad is not None:
                change = partial(_cast_, dtype=self.dtype, largest=most)
                overwrite(grad, change, index=index, most=2 * most)
        return grads, state


def _check_fits(largest: Sequence[float], narrow: torch.dtype) -> None:
    # Some versions of torch saturate the 8-bit formats and some overflow them: judge by the size.
    info = torch.finfo(narrow)
    for index, most in enumerate(largest):
        if most >= info.max * (1 + info.eps / 4):
            what = f"does not fit {narrow}, whose largest number is {info.max:g}: clip or scale it "
            raise NonFiniteGradientError(index, what=what + "first")


def _cast_(piece: Tensor, *, dtype: Format, largest: float) -> None:
    if dtype == "int8":
        _to_int8_(piece, largest=largest)
        return
    narrow: torch.dtype = getattr(torch, dtype)
    if narrow.itemsize == 1 and piece.dtype == torch.float32:
        _round_(piece, narrow)
        return
    held = scratch("casting", len(piece), narrow, device=piece.device)
    piece.copy_(held.copy_(piece)).add_(0.0)  # -0.0 + 0.0 is 0.0


def _round_(piece: Tensor, narrow: torch.dtype) -> None:
    """Round single precision to the nearest number of ``narrow``, ties to even, in its range.

    In arithmetic, because torch converts to 8 bits one number at a time. What is added to a number
    and taken away again is so much larger that only the bits of ``narrow`` find room beside it.
    """
    info, single = torch.finfo(narrow), torch.finfo(torch.float32)
    held = scratch("casting.binade", len(piece), torch.int32, device=piece.device)
    torch.bitwise_and(piece.view(torch.int32), 0x7F800000, out=held)  # the exponent alone
    binade = held.view(torch.float32).clamp_(min=info.smallest_normal)
    # A multiple by so round a number is exact, whether it is rounded by itself or not.
    by = 1.5 * info.eps / single.eps
    piece.add_(binade, alpha=by).sub_(binade, alpha=by)  # leaves +0.0 of what is too small


def _to_int8_(piece: Tensor, *, largest: float) -> None:
    if largest == 0:
        piece.zero_()
        return
    scaled_(piece, steps=_INT8, largest=largest)
    # As round_(), but leaves +0.0 of what is too small: there is no room for fractions up there.
    room = 1.5 / torch.finfo(piece.dtype).eps
    piece.add_(room).sub_(room)
    unscaled_(piece, steps=_INT8, largest=largest)
