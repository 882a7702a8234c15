"""Flower's arrays as tensors, read with care: nothing is allocated on the word of a header."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

DENSE = "numpy.ndarray"
"""How Flower calls its own serialisation."""

MOST_HEADER = 2000
"""Bytes; numpy allows 64 dimensions."""

_FORM = re.compile(
    rb"\{'descr': '([<>|=][A-Za-z]\d{0,4})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,19}(?:, \d{1,19})*,?)?)\), \} *\n"
)


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
    except ValueError as error:
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
    """``entries`` in the dtypes of a model that was loaded from them.

    Flower's strategies multiply every array by a weight, so that BatchNorm's integer counters come
    back as floating-point numbers; FedAdam gives all in double precision. ``load_state_dict``
    converts, truncating counters, and so does this.
    """
    return {
        name: tensor.to(like[name].dtype) if name in like and tensor.is_floating_point() else tensor
        for name, tensor in entries.items()
    }


def _header(data: bytes) -> bytes:
    """The part of a saved array that says what it is, in versions 1 to 3 of numpy's format."""
    start = 10 if data[6:7] == b"\x01" else 12
    length = int.from_bytes(data[8:start], "little")
    if data[:6] != b"\x93NUMPY" or length > MOST_HEADER:
        raise ValueError("it does not begin like one")
    return data[: start + length]


# A client's arrays have the same few forms in every round.
@lru_cache(maxsize=1024)
def _form(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    # Not by numpy's parser, which reads a form as Python source: hostile ones make it raise
    # anything, out of memory included.
    found = _FORM.fullmatch(header, 10 if header[6:7] == b"\x01" else 12)
    if found is None:
        raise ValueError("its header has no plain dtype, order and shape")
    descr, order, shape = (part.decode("ascii") for part in found.groups())
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ValueError(f"there is no dtype {descr!r}") from None
    sizes = tuple(int(size) for size in shape.replace(",", " ").split())
    return sizes, order == "True", dtype, len(header)


@lru_cache(maxsize=1024)
def _header_for(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    form = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, form)
    return stream.getvalue()
