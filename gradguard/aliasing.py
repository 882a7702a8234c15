"""Results that share no memory with the gradients they came from, nor with one another.

A pure transform may return its argument, or keep it in its state. The guard then writes to that
same memory, and so does the next ``zero_grad()``: the state would change behind the transform. A
transform that works in place writes to its arguments, which must therefore lie apart.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from torch import Tensor


def storages(grads: Sequence[Tensor | None]) -> set[int]:
    """Addresses of the memory behind these gradients."""
    return {g.untyped_storage().data_ptr() for g in grads if g is not None}


def unaliased(value: Any, *, memory: Set[int]) -> Any:
    """``value`` with every tensor in ``memory`` replaced by a copy; lists and dicts are followed.

    >>> import torch
    >>> grad = torch.ones(2)
    >>> state = unaliased({"last": [grad]}, memory=storages([grad]))
    >>> _ = grad.zero_()
    >>> state
    {'last': [tensor([1., 1.])]}
    """
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().data_ptr() in memory else value
    if isinstance(value, dict):
        return {key: unaliased(held, memory=memory) for key, held in value.items()}
    if isinstance(value, list):
        return [unaliased(held, memory=memory) for held in value]
    return value


def disjoint(grads: Sequence[Tensor | None]) -> bool:
    """Whether every element of every gradient surely has memory of its own.

    Views of one storage may be disjoint, such as those into a bucket of
    ``DistributedDataParallel``; two that lie interlaced are taken for overlapping.

    >>> import torch
    >>> bucket = torch.zeros(6)
    >>> disjoint([bucket[:2], None, bucket[2:].view(2, 2)]), disjoint([bucket[:3], bucket[2:]])
    (True, False)
    >>> disjoint([torch.zeros(1).expand(3)])
    False
    """
    ranges = []
    for grad in grads:
        if grad is None or not (length := grad.nbytes):
            continue
        if not grad.is_contiguous():
            if _overlaps_itself(grad):
                return False
            last = sum((n - 1) * s for n, s in zip(grad.shape, grad.stride(), strict=True))
            length = (1 + last) * grad.element_size()
        start = grad.data_ptr()
        ranges.append((start, start + length))
    ranges.sort()
    end = 0
    for start, until in ranges:
        if start < end:
            return False
        end = until
    return True


def _overlaps_itself(tensor: Tensor) -> bool:
    # Sufficient for layouts without overlap: every stride passes over all that smaller ones reach.
    reach = 0
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1:
            if stride <= reach:
                return True
            reach += (n - 1) * stride
    return False


def separated(
    grads: list[Tensor | None], state: dict[str, Any]
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """The same values, with no memory shared between gradients, or between them and the state.

    >>> import torch
    >>> grad = torch.ones(1)
    >>> (first, second), state = separated([grad, grad], {"last": grad})
    >>> _ = first.zero_()
    >>> second, state
    (tensor([1.]), {'last': tensor([1.])})
    """
    if not disjoint(grads):
        grads = [None if g is None else g.clone() for g in grads]
    return grads, unaliased(state, memory=storages(grads)) if state else state
