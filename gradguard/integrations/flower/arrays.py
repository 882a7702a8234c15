"""Flower's arrays as tensors, read with care: nothing is allocated on the word of a header."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache

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
    try:
        shape, columns_first, dtype, start = _form(_header(array.data))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name!r} is no array of numpy: {error}") from None
    if dtype.kind not in "biuf" or not dtype.isnative:
        raise ValueError(f"{name!r} holds {dtype}; expected numbers in this machine's byte order")
    size = math.prod(shape) * dtype.itemsize
    if len(array.data) - start != size:
        raise ValueError(
            f"{name!r} should have {size:,} bytes by its header and has {len(array.data) - start:,}"
        )
    flat = np.frombuffer(array.data, dtype=dtype, offset=start).copy()
    return flat.reshape(shape, order="F" if columns_first else "C")


def record_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower sends them."""
    return ArrayRecord({name: written(t.detach().cpu().numpy()) for name, t in tensors.items()})


def written(array: np.ndarray) -> Array:
    """An array as ``Array(array)`` writes it, in the order of C."""
    data = _header_for(array.dtype, array.shape) + array.tobytes()
    return Array(str(array.dtype), array.shape, DENSE, data)


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


def _header(data: bytes) -> bytes:
    """The part of a saved array that says what it is, in versions 1 to 3 of numpy's format."""
    start = 10 if data[6:7] == b"\x01" else 12
    return data[: start + int.from_bytes(data[8:start], "little")]


# A client's arrays have the same few forms in every round, and numpy's parser, which reads a form
# as Python source, takes longer than a small layer's numbers.
@lru_cache(maxsize=1024)
def _form(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    stream = io.BytesIO(header)
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    return shape, columns_first, dtype, stream.tell()


@lru_cache(maxsize=1024)
def _header_for(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    form = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, form)
    return stream.getvalue()
