"""Flower's arrays are read without believing their headers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st

from gradguard.integrations.flower.arrays import array_of, record_of, tensors_of, written


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i4", "i8", "?"]),
    order=st.sampled_from("CF"),
)
def test_what_flower_writes_is_read_bit_by_bit(shape: list[int], dtype: str, order: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    array = Array(np.array(numbers, order=order))  # type: ignore[call-overload]
    found = array_of(array, "x")
    assert found.dtype == numbers.dtype
    assert np.array_equal(found, numbers)
    assert np.array_equal(found, array.numpy())


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i4", "i8", "?"]),
)
def test_what_is_written_is_byte_by_byte_what_flower_writes(shape: list[int], dtype: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    assert written(numbers) == Array(numbers)
    turned = numbers.T  # which Flower writes by columns, and this does not
    assert np.array_equal(written(turned).numpy(), turned)


def test_tensors_come_back_and_share_no_memory() -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.tensor(1.5), "c": torch.arange(3)}
    record = record_of(tensors)
    found = tensors_of(record)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    found["a"].zero_()
    assert torch.equal(tensors_of(record)["a"], tensors["a"])


def saved(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (Array("float32", (2,), "numpy.ndarray", saved(np.zeros(2, "f4"))[:-1]), "should have 8"),
        (Array("float32", (2,), "numpy.ndarray", saved(np.zeros(2, "f4")) + b"0"), "should have 8"),
        (Array("float32", (2,), "numpy.ndarray", b""), "no array of numpy"),
        (Array("float32", (2,), "numpy.ndarray", b"\x80\x04pickled"), "no array of numpy"),
        (Array("float32", (2,), "torch.Tensor", saved(np.zeros(2))), "expected 'numpy.ndarray'"),
        (
            Array("object", (1,), "numpy.ndarray", saved(np.array([None]), allow_pickle=True)),
            "holds",
        ),
        (Array("str", (1,), "numpy.ndarray", saved(np.array(["a"]))), "holds"),
        (Array("f", (1,), "numpy.ndarray", saved(np.zeros(1, ">f4"))), "byte order"),
    ],
)
def test_anything_else_is_refused(array: Array, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        array_of(array, "x")


@pytest.mark.parametrize(
    "header", [b"(((\n", b"  1\n 2\n", b"[" * 9000, b"-" * 9000 + b"1\n", b"{'descr': '<f4'}", b""]
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_hostile_header_is_refused_and_nothing_else(header: bytes, version: int) -> None:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    data = b"\x93NUMPY" + bytes([version, 0]) + length + header
    with pytest.raises(ValueError, match="no array of numpy"):
        array_of(Array("float32", (2,), "numpy.ndarray", data), "x")


@given(st.binary(max_size=200))
def test_no_bytes_crash_it(data: bytes) -> None:
    head = saved(np.zeros(2, "f4"))
    for mutated in (data, head[:8] + data, head[:20] + data):
        try:
            array_of(Array("float32", (2,), "numpy.ndarray", mutated), "x")
        except ValueError:
            continue
