from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradguard import Cast, Grads, NonFiniteGradientError
from gradguard.testing import grads
from gradguard.transforms.casting import Format

FORMATS: list[Format] = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def _sent(dtype: Format, grad: Tensor) -> Tensor:
    (out,), _ = Cast(dtype).update([grad], {})
    assert out is not None
    return out


@pytest.mark.parametrize("dtype", get_args(Format))
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
    out = _sent(dtype, torch.tensor([-1e-44, 1e-44, -0.0, 1.0]))
    assert out.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert not bool(torch.signbit(out).any())


def _numbers(narrow: torch.dtype) -> Tensor:
    """Every finite number of an 8-bit format, as float32, sorted."""
    numbers = torch.arange(256, dtype=torch.uint8).view(narrow).float()
    found: Tensor = torch.unique(numbers[numbers.isfinite()])
    return found


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits_are_rounded_as_torch_rounds_them_ties_and_neighbours_included(
    dtype: Format,
) -> None:
    """Ours is done in arithmetic, several times faster: torch converts number by number."""
    narrow = getattr(torch, dtype)
    numbers = _numbers(narrow)
    ties = ((numbers[1:].double() + numbers[:-1].double()) / 2).float()
    beside = [torch.nextafter(ties, torch.tensor(float(to))) for to in (-1e30, 1e30)]
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(200_000, generator=rng) * 2.0 ** torch.randint(
        -30, 6, (200_000,), generator=rng
    )
    grad = torch.cat([numbers, ties, *beside, spread]).clamp(numbers.min(), numbers.max())
    assert torch.equal(_sent(dtype, grad), grad.to(narrow).float())


def test_int8_is_127_steps_to_the_largest_magnitude_ties_to_even() -> None:
    out = _sent("int8", torch.tensor([127.0, 1.4, 1.5, 2.5, -3.5, -127.0, 126.51]))
    assert out.tolist() == [127.0, 1.0, 2.0, 2.0, -4.0, -127.0, 127.0]


@given(st.integers(0, 1000), st.sampled_from([1e-44, 1e-30, 1.0, 3e38]))
def test_int8_takes_the_nearest_of_255_values_and_keeps_the_largest(seed: int, size: float) -> None:
    grad = torch.rand(300, generator=torch.Generator().manual_seed(seed)).mul(2).sub(1).mul(size)
    out, largest = _sent("int8", grad).double(), grad.abs().max()
    assert len(set(out.tolist())) <= 255
    assert torch.equal(out.abs().max().float(), largest)
    # A step of the smallest numbers is a step of float32 itself.
    half_step = largest.double() / 127 / 2 * (1 + 1e-5) + 2.0**-149
    assert bool(((out - grad.double()).abs() <= half_step).all())


def test_int8_values_are_code_over_127_times_the_largest() -> None:
    """The wire format knows a quantized tensor by this formula, operation by operation."""
    grad = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    largest = grad.abs().max()
    codes = torch.round(grad.double() * 127 / largest.double()).float()
    assert torch.equal(_sent("int8", grad), codes / 127 * largest)
