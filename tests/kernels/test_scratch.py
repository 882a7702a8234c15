from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gradguard.kernels.scratch import CHUNK, scratch


def test_the_same_name_and_dtype_give_the_same_memory() -> None:
    first = scratch("test.same", 10, torch.float32)
    assert scratch("test.same", 7, torch.float32).data_ptr() == first.data_ptr()


def test_names_and_dtypes_do_not_share_memory() -> None:
    kinds = [("test.a", torch.float32), ("test.b", torch.float32), ("test.a", torch.int32)]
    assert len({scratch(name, 5, dtype).data_ptr() for name, dtype in kinds}) == 3


def test_threads_do_not_share_memory() -> None:
    here = scratch("test.thread", 5, torch.float32).fill_(1.0)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(lambda: scratch("test.thread", 5, torch.float32).fill_(2.0)).result()
    assert there.data_ptr() != here.data_ptr()
    assert here.tolist() == [1.0] * 5


def test_a_buffer_grows_when_more_is_asked_for() -> None:
    assert len(scratch("test.grows", 3, torch.bool)) == 3
    assert len(scratch("test.grows", 3000, torch.bool)) == 3000
    assert len(scratch("test.grows", 0, torch.bool)) == 0


@pytest.mark.parametrize("size", [-1, CHUNK + 1])
def test_no_buffer_is_longer_than_a_chunk(size: int) -> None:
    assert len(scratch("test.long", CHUNK, torch.bool)) == CHUNK
    with pytest.raises(ValueError, match=f"0 to {CHUNK} elements, got {size}"):
        scratch("test.long", size, torch.bool)
