"""Sending the gradient in a narrower floating-point format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.elementwise import restore
from gradguard.finite import NonFiniteGradientError, check_finite, is_finite

Format = Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@dataclass(frozen=True)
class Cast:
    """Round every coordinate to ``dtype`` and back to the gradient's own dtype.

    Guarantees:

    - every value is one that ``dtype`` can hold; a second cast changes nothing;
    - a value too large for ``dtype`` raises. It is neither sent as infinity nor cut to the
      largest number, because both would change the gradient without a word;
    - a value too small for ``dtype`` becomes ``+0.0``: not even its sign is sent.

    With the 8-bit formats and no scaling, most of a gradient can be too small. It does
    not hide labels.

    Args:
        dtype: ``"float16"``, ``"bfloat16"``, ``"float8_e4m3fn"`` or ``"float8_e5m2"``.

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
        check_finite(grads)
        narrow: torch.dtype = getattr(torch, self.dtype)
        return [None if g is None else _cast(g, narrow, i) for i, g in enumerate(grads)], state


def _cast(grad: Tensor, narrow: torch.dtype, index: int) -> Tensor:
    # Some versions of torch saturate the 8-bit formats and some overflow them: judge by the size.
    wide = grad.to(narrow).double()
    half_step = torch.finfo(narrow).max * (1 + torch.finfo(narrow).eps / 4)
    too_large = grad.numel() > 0 and grad.abs().max().item() >= half_step
    if too_large or not is_finite(wide):
        largest = torch.finfo(narrow).max
        what = f"does not fit {narrow}, whose largest number is {largest:g}: clip or scale it first"
        raise NonFiniteGradientError(index, what=what)
    return restore(wide.add_(0.0), grad, index=index)  # -0.0 + 0.0 is 0.0
