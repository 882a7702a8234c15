"""The dtypes that a message can hold, each with its number on the wire.

Tensors travel as unsigned integers of the same width: their bits. Comparing, sorting and copying
bits keeps what arithmetic on numbers would lose: the sign of zero and the payload of a NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradguard.wire.errors import WireError

Bits = NDArray[Any]
"""A flat array of unsigned integers, one per element of a tensor, in row-major order."""


Parts = list[bytes | memoryview]
"""Bytes to be written one after the other."""


@dataclass(frozen=True)
class Format:
    """A dtype: its number on the wire, its bits, and its numbers if numpy has them."""

    code: int
    dtype: torch.dtype
    bits: np.dtype[Any]
    numbers: np.dtype[Any]

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return int(self.bits.itemsize)

    @property
    def signed_zero(self) -> bool:
        """Whether the top bit alone is -0.0; in the dtypes ``fnuz`` it is NaN."""
        return self.dtype.is_floating_point and not self.name.endswith("fnuz")


def _format(code: int, dtype: torch.dtype, numbers: str | None = None) -> Format:
    bits = np.dtype(f"<u{dtype.itemsize}")
    return Format(code, dtype, bits, bits if numbers is None else np.dtype(numbers))


# A number, once given, is never given to another dtype.
FLOAT64 = _format(1, torch.float64, "<f8")
FLOAT32 = _format(2, torch.float32, "<f4")
FLOAT16 = _format(3, torch.float16, "<f2")
BFLOAT16 = _format(4, torch.bfloat16)
FLOAT8_E4M3FN = _format(5, torch.float8_e4m3fn)
FLOAT8_E5M2 = _format(6, torch.float8_e5m2)
INT64, INT32 = _format(16, torch.int64, "<i8"), _format(17, torch.int32, "<i4")
INT16, INT8 = _format(18, torch.int16, "<i2"), _format(19, torch.int8, "<i1")
BOOL = _format(24, torch.bool)
FORMATS = (
    *(FLOAT64, FLOAT32, FLOAT16, BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2),
    *(_format(7, torch.float8_e4m3fnuz), _format(8, torch.float8_e5m2fnuz)),
    *(INT64, INT32, INT16, INT8),
    *(_format(20, torch.uint64, "<u8"), _format(21, torch.uint32, "<u4")),
    *(_format(22, torch.uint16, "<u2"), _format(23, torch.uint8, "<u1"), BOOL),
)
_BY_DTYPE = {fmt.dtype: fmt for fmt in FORMATS}
_BY_CODE = {fmt.code: fmt for fmt in FORMATS}
_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def format_of(name: str, tensor: Tensor) -> Format:
    """The format of a tensor's dtype; what a message cannot hold is a ``TypeError``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r} must be a tensor, got {type(tensor).__name__}")
    fmt = _BY_DTYPE.get(tensor.dtype)
    dense = tensor.layout == torch.strided and not tensor.is_nested
    if fmt is None or not dense or tensor.device.type == "meta":
        known = ", ".join(known.name for known in FORMATS)
        raise TypeError(
            f"{name!r} must be a dense tensor with values and one of the dtypes {known}; got "
            f"{tensor.dtype}, layout {tensor.layout}, device {tensor.device}: convert it first"
        )
    return fmt


def format_by_code(code: int) -> Format:
    """The format with this number."""
    fmt = _BY_CODE.get(code)
    if fmt is None:
        raise WireError(f"no dtype has the number {code}; a newer version may have written this")
    return fmt


def bits_of(tensor: Tensor) -> Bits:
    """The bits of all elements in row-major order, without a copy where memory already is so."""
    flat = tensor.detach().resolve_neg().cpu().contiguous().reshape(-1)
    try:
        bits: Bits = flat.view(_SIGNED[tensor.dtype.itemsize]).numpy()
    except RuntimeError as error:  # of a fake tensor, for one
        raise TypeError(
            f"a {type(tensor).__name__} has no memory to read; give a plain tensor ({error})"
        ) from error
    return bits.view(f"u{tensor.dtype.itemsize}")


def tensor_of(bits: Bits, fmt: Format, shape: tuple[int, ...]) -> Tensor:
    """The tensor whose bits these are; it shares their memory."""
    if fmt == BOOL and len(bits) and bits.max() > 1:
        raise WireError(f"a bool must be 0 or 1, got {bits.max()}")
    if not len(bits):
        # Not from the array: torch gives an empty one the stride 0.
        return torch.empty(shape, dtype=fmt.dtype, device="cpu")
    signed = bits.view(f"i{fmt.size}" if fmt.size > 1 else "u1")
    return torch.from_numpy(signed).view(fmt.dtype).reshape(shape)
