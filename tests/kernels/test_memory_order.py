from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gradguard.kernels.memory_order import from_row_major, in_memory_order, row_major

DENSE = {
    "contiguous": torch.arange(24.0).view(2, 3, 4),
    "transposed": torch.arange(24.0).view(4, 6).t(),
    "permuted": torch.arange(24.0).view(2, 3, 4).permute(1, 2, 0),
    "channels last": torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "one long": torch.arange(5.0).view(1, 5, 1).transpose(0, 2),
    "0-d": torch.tensor(3.0),
    "empty": torch.zeros(0, 3).t(),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_flat_view_shares_memory_and_row_major_says_where_its_elements_stand(name: str) -> None:
    tensor = DENSE[name]
    flat = in_memory_order(tensor)
    assert flat is not None
    assert flat.data_ptr() == tensor.data_ptr()
    places = row_major(tensor, np.arange(tensor.numel()))
    expected = tensor.reshape(-1)[torch.from_numpy(places)]
    assert torch.equal(flat, expected)
    assert from_row_major(tensor, places).tolist() == list(range(tensor.numel()))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4, 6)[:, :3], torch.zeros(8)[::2], torch.zeros(3, 1).expand(3, 4)],
    ids=["rows", "every second", "expanded"],
)
def test_there_is_no_flat_view_of_gaps_and_overlaps(tensor: Tensor) -> None:
    assert in_memory_order(tensor) is None


def test_the_view_is_detached_and_its_writes_are_counted() -> None:
    tensor = torch.zeros(2, 3, requires_grad=True)
    flat, before = in_memory_order(tensor), tensor._version
    assert flat is not None
    assert not flat.requires_grad
    flat[0] = 1.0
    assert tensor._version > before
