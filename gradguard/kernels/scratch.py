"""Scratch memory: buffers that are used again and again instead of being allocated in every step.

A fresh allocation of many megabytes costs several times what reading and writing it costs, because
the operating system hands out, and zeroes, one page after the other. Long gradients are therefore
walked through in chunks, and whatever a chunk needs lies in a buffer from here.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

CHUNK = 2**20
"""Elements that one buffer may hold: the longest piece of a gradient that is worked on at once."""


class _Buffers(threading.local):
    """Two threads of one process may update two optimizers at the same time."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}


_buffers = _Buffers()
_CPU = torch.device("cpu")


def scratch(name: str, size: int, dtype: torch.dtype, *, device: torch.device = _CPU) -> Tensor:
    """A flat tensor of ``size`` elements that holds whatever its last user left there.

    Guarantees:

    - the same name and dtype give the same memory in one thread, and other memory in another;
    - no two names share memory;
    - no buffer is longer than :data:`CHUNK` elements, so what stays allocated is bounded.

    What is returned may be used until the next call with the same name and dtype. It must reach
    neither a result nor a state: copy out of it. Name it after the module that uses it.

    Args:
        name: Whose buffer; a literal such as ``"selection.magnitude"``.
        size: Elements needed, 0 to :data:`CHUNK`.
        dtype: Their dtype.
        device: On an accelerator the tensor is a fresh one of any size: its allocator hands out
            the same memory again by itself.

    Raises:
        ValueError: ``size`` is negative or, on the CPU, more than :data:`CHUNK`.

    >>> buffer = scratch("example", 4, torch.float32).fill_(1.0)
    >>> scratch("example", 3, torch.float32)
    tensor([1., 1., 1.])
    """
    if device.type != "cpu":
        return torch.empty(size, dtype=dtype, device=device)
    if not 0 <= size <= CHUNK:
        raise ValueError(f"a scratch buffer has 0 to {CHUNK} elements, got {size}; work in chunks")
    held = _buffers.held.get((name, dtype))
    if held is None or held.numel() < size:
        # In powers of two: a buffer that grows with every call would be allocated in every call.
        length = 1 << max(0, size - 1).bit_length()
        # Made in inference mode, a buffer could not be written to by any later step outside it.
        with torch.inference_mode(False):
            held = torch.empty(length, dtype=dtype, device=_CPU)
        _buffers.held[name, dtype] = held
    return held[:size]
