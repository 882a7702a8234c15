"""Arithmetic on one thread is bitwise torch's, for every pair of dtypes that memories have."""

from __future__ import annotations

import pytest
import torch

from gradguard.kernels.one_thread import add, multiply

SIZE = 1003  # no multiple of any vector's length
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.float32),
]


def _values(dtype: torch.dtype, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randn(SIZE, generator=rng) * torch.logspace(-30, 30, SIZE)
    return drawn.to(dtype).nan_to_num(posinf=1.0, neginf=-1.0)


@pytest.mark.parametrize(("memory", "gradient"), PAIRS)
def test_sums_and_products_are_bitwise_those_of_torch(
    memory: torch.dtype, gradient: torch.dtype
) -> None:
    held, grad = _values(memory, 0), _values(gradient, 1)
    out = torch.empty(SIZE, dtype=memory)
    assert torch.equal(multiply(held, 0.9, out=out), held * 0.9)
    assert torch.equal(add(held, grad, out=out), held + grad)


def test_one_vector_may_be_read_and_written() -> None:
    held, grad = _values(torch.float32, 0), _values(torch.float32, 1)
    expected = held * 0.9 + grad
    assert torch.equal(add(multiply(held, 0.9, out=held), grad, out=held), expected)


def test_an_overflow_is_infinite_and_warns_of_nothing() -> None:
    large = torch.full((3,), 3e38)
    assert bool(add(large, large, out=torch.empty(3)).isinf().all())


def test_a_write_is_counted() -> None:
    grad = torch.ones(3)
    before = grad._version
    add(grad.view(-1)[1:], torch.ones(2), out=grad.view(-1)[1:])
    assert grad._version > before


def test_tensors_of_inference_mode_are_written_to_as_well() -> None:
    with torch.inference_mode():
        out = torch.ones(2)
        assert torch.equal(add(out, out, out=out), torch.full((2,), 2.0))
