"""A DXO's arrays as tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradguard.finite import is_finite

Array = np.ndarray | Tensor

WIRE_KEY = "gradguard.wire.v1"
"""The one entry of an ``APP_DEFINED`` DXO that holds a message of :mod:`gradguard.wire`."""

COUNTER = "num_batches_tracked"
"""The last part of the name of the only buffer of torch's layers that holds whole numbers."""


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


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By name, as :func:`with_dtypes` takes them."""
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}


def with_dtypes(tensors: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> dict[str, Tensor]:
    """``tensors`` in the dtypes that they had in the first round, or ``dtypes`` names none.

    NVFlare's aggregators multiply all arrays by a weight, so that counters come back as
    floating-point numbers, and so do the differences to them, which are truncated here as
    ``load_state_dict`` does. Without it BatchNorm's counters would become parameters.

    Raises:
        ValueError: A counter is NaN or infinite.
    """
    return {
        name: _as_dtype(name, tensor, dtypes.get(name) or _usual(name))
        for name, tensor in tensors.items()
    }


def check_parameters(tensors: Mapping[str, Tensor]) -> None:
    """Raise if there is nothing that a defence works on."""
    if not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise ValueError("the update holds no floating-point numbers: there is no parameter")


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors together, as arrays."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _usual(name: str) -> str | None:
    return "int64" if name.rpartition(".")[2] == COUNTER else None


def _as_dtype(name: str, tensor: Tensor, dtype: str | None) -> Tensor:
    wanted = tensor.dtype if dtype is None else getattr(torch, dtype)
    # No integer is NaN: the cast would make some number of it.
    if tensor.is_floating_point() and not wanted.is_floating_point and not is_finite(tensor):
        raise ValueError(f"{name!r} contains NaN or infinity, and is a counter")
    return tensor.to(wanted)


def _checked_name(name: object) -> str:
    if type(name) is not str:  # of another class it may carry more than its letters
        raise ValueError(f"expected arrays by name, got the name {name!r}")
    return name


def _tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{name!r} is no dense tensor; send it dense")
        return value.detach().cpu().as_subclass(Tensor)
    if isinstance(value, np.ndarray | np.generic):
        array = np.array(value)
        if array.dtype.kind in "biuf" and array.dtype.isnative and array.dtype.itemsize <= 8:
            return torch.from_numpy(array)
        raise ValueError(f"{name!r} holds {array.dtype}; expected numbers of at most 64 bits")
    raise ValueError(
        f"{name!r} is {kind_of(value)}; expected an array. Put GuardFilter before filters that "
        "encrypt or encode"
    )


def kind_of(value: object) -> str:
    """What ``value`` is, for an error message that tells nothing of its numbers."""
    if isinstance(value, Array):
        numbers = value.numel() if isinstance(value, Tensor) else value.size
        return f"an array of {numbers:,} numbers"
    return f"a {type(value).__name__}"
