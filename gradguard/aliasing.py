"""Results that share no memory with the gradients they came from.

A pure transform may return its argument, or keep it in its state. The guard then writes to that
same memory, and so does the next ``zero_grad()``: the state would change behind the transform.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import Tensor

from gradguard.core import Grads


def storages(grads: Grads) -> set[int]:
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
