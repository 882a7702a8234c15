from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from torch import Tensor

from gradguard import Cast, Grads, NonFiniteGradientError
from gradguard.casting import Format
from gradguard.testing import grads

FORMATS: list[Format] = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def _sent(dtype: Format, grad: Tensor) -> Tensor:
    (out,), _ = Cast(dtype).update([grad], {})
    assert out is not None
    return out


@pytest.mark.parametrize("dtype", FORMATS)
@given(grads())
def test_a_second_cast_changes_nothing(dtype: Format, given_grads: Grads) -> None:
    once, _ = Cast(dtype).update(given_grads, {})
    twice, _ = Cast(dtype).update(once, {})
    for a, b in zip(once, twice, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", FORMATS)
def test_values_are_rounded_to_the_nearest_that_the_format_holds(dtype: Format) -> None:
    grad = torch.linspace(-3, 3, 101)
    eps = torch.finfo(getattr(torch, dtype)).eps
    assert bool(((_sent(dtype, grad) - grad).abs() <= grad.abs() * eps / 2 + 2**-10).all())


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_largest_number_passes_and_the_next_power_of_two_raises(dtype: Format) -> None:
    largest = torch.finfo(getattr(torch, dtype)).max
    grad = torch.tensor([largest, -largest])
    assert torch.equal(_sent(dtype, grad), grad)
    beyond = torch.tensor([0.0, -largest * 1.2], dtype=torch.float64)
    with pytest.raises(NonFiniteGradientError, match="does not fit torch") as caught:
        Cast(dtype).update([None, beyond], {})
    assert caught.value.index == 1


def test_golden_values_of_float8() -> None:
    """448 and 57344 are the largest numbers of the two formats (arXiv:2209.05433, table 1)."""
    assert _sent("float8_e4m3fn", torch.tensor([448.0, 2**-9, 2**-11])).tolist() == [448, 2**-9, 0]
    assert _sent("float8_e5m2", torch.tensor([57344.0, 2**-16, 2**-18])).tolist() == [
        57344,
        2**-16,
        0,
    ]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        Cast("float8")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", get_args(Format))
def test_a_value_too_small_for_the_format_becomes_a_zero_without_a_sign(dtype: Format) -> None:
    (out,), _ = Cast(dtype).update([torch.tensor([-1e-44, 1e-44])], {})
    assert out is not None
    assert out.tolist() == [0.0, 0.0]
    assert not bool(torch.signbit(out).any())
