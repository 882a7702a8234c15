"""A DXO's arrays as tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

WIRE_KEY = "gradguard.wire.v1"
"""The one entry of an ``APP_DEFINED`` DXO that holds a message of :mod:`gradguard.wire`."""


def tensors_of(data: object) -> dict[str, Tensor]:
    """The entries of a DXO's data, as tensors on the CPU.

    Raises:
        ValueError: An entry is not an array of numbers, as of a model that another filter has
            encrypted or encoded.
    """
    if not isinstance(data, Mapping) or not data:
        raise ValueError(f"expected arrays by name, got {kind_of(data)} without any")
    return {_checked_name(name): _tensor(name, value) for name, value in data.items()}


def arrays_like(update: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Array]:
    """``update`` in the libraries in which the entries of ``like`` came: numpy or torch."""
    return {
        name: tensor if isinstance(like.get(name), Tensor) else np.array(tensor.numpy())
        for name, tensor in update.items()
    }


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors together, as arrays."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"expected arrays by name, got the name {name!r}")
    return name


def _tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{name!r} is no dense tensor; send it dense")
        return value.detach().cpu()
    if isinstance(value, np.ndarray | np.generic):
        array = np.array(value)
        if array.dtype.kind in "biuf" and array.dtype.isnative and array.dtype.itemsize <= 8:
            return torch.from_numpy(array)
        raise ValueError(f"{name!r} holds {array.dtype}; expected numbers of at most 64 bits")
    raise ValueError(
        f"{name!r} is {kind_of(value)}; expected an array. Put GuardFilter before filters that "
        "encrypt or encode"
    )


def count_of(array: Array) -> int:
    """How many numbers it holds."""
    return array.numel() if isinstance(array, Tensor) else array.size


def kind_of(value: object) -> str:
    """What ``value`` is, for an error message that tells nothing of its numbers."""
    if isinstance(value, Array):
        return f"an array of {count_of(value):,} numbers"
    return f"a {type(value).__name__}"
