"""Flower's arrays as tensors, read with care: nothing is allocated on the word of a header."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

DENSE = "numpy.ndarray"
"""How Flower calls its own serialisation."""


def tensors_of(record: Mapping[str, Array]) -> dict[str, Tensor]:
    """The entries of a record, as copies.

    Raises:
        ValueError: An array is not numpy's, or its bytes are not what its header says.
    """
    return {name: torch.from_numpy(array_of(array, name)) for name, array in record.items()}


def array_of(array: Array, name: str) -> np.ndarray:
    """The numbers of one array.

    ``Array.numpy`` allocates what the header asks for before it looks for the bytes.
    """
    if array.stype != DENSE:
        raise ValueError(f"{name!r} is {array.stype!r}; expected {DENSE!r}")
    stream = io.BytesIO(array.data)
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, columns_first, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name!r} is no array of numpy: {error}") from None
    if dtype.kind not in "biuf" or not dtype.isnative:
        raise ValueError(f"{name!r} holds {dtype}; expected numbers in this machine's byte order")
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(array.data) - start != size:
        raise ValueError(
            f"{name!r} should have {size:,} bytes by its header and has {len(array.data) - start:,}"
        )
    flat = np.frombuffer(array.data, dtype=dtype, offset=start).copy()
    return flat.reshape(shape, order="F" if columns_first else "C")


def record_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower sends them."""
    return ArrayRecord({name: Array(t.detach().cpu().numpy()) for name, t in tensors.items()})


def with_dtypes_of(entries: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``entries``, with counters that a server has averaged made whole again.

    Flower's strategies multiply every array by a weight, so that BatchNorm's integer counters come
    back as floating-point numbers. ``load_state_dict`` truncates them, and so does this.
    """
    return {
        name: tensor.to(like[name].dtype)
        if name in like and tensor.is_floating_point() and not like[name].is_floating_point()
        else tensor
        for name, tensor in entries.items()
    }
