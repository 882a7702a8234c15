from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gradguard import ClipByGlobalNorm, ClipByValue, Grads
from gradguard.testing import grads
from gradguard.transforms.clipping import global_norm
from tests import reference


def _flat(given_grads: Grads) -> list[float]:
    return [v for g in given_grads if g is not None for v in g.double().reshape(-1).tolist()]


@given(grads())
def test_global_norm_is_that_of_all_gradients_laid_end_to_end(given_grads: Grads) -> None:
    assert global_norm(given_grads) == pytest.approx(reference.l2_norm(_flat(given_grads)))


@given(grads(), st.floats(1e-3, 1e3))
def test_norm_never_exceeds_max_norm_up_to_rounding(given_grads: Grads, max_norm: float) -> None:
    out, _ = ClipByGlobalNorm(max_norm).update(given_grads, {})
    # bfloat16 rounds by 2**-9 relative; a float16 subnormal by 2**-25 absolute, 1024 of them.
    assert reference.l2_norm(_flat(out)) <= max_norm * (1 + 2**-8) + 2**-20


@given(grads(), st.floats(1e-3, 1e3))
def test_gradients_within_the_bound_are_unchanged(given_grads: Grads, max_norm: float) -> None:
    assume(reference.l2_norm(_flat(given_grads)) < max_norm)
    out, _ = ClipByGlobalNorm(max_norm).update(given_grads, {})
    assert _flat(out) == _flat(given_grads)


@given(grads(), st.floats(1e-3, 1e3))
def test_output_is_a_non_negative_multiple(given_grads: Grads, max_norm: float) -> None:
    (*out,), _ = ClipByGlobalNorm(max_norm).update(given_grads, {})
    scale = min(1.0, max_norm / max(reference.l2_norm(_flat(given_grads)), 1e-300))
    expected = [v * scale for v in _flat(given_grads)]
    assert _flat(out) == pytest.approx(expected, rel=2**-8, abs=1e-6)


@given(grads())
def test_clipping_twice_is_clipping_once_up_to_rounding(given_grads: Grads) -> None:
    clip = ClipByGlobalNorm(1.0)
    once, _ = clip.update(given_grads, {})
    twice, _ = clip.update(once, {})
    assert _flat(twice) == pytest.approx(_flat(once), rel=2**-7, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1e30, torch.float32), (1e200, torch.float64), (1.7e308, torch.float64), (6e4, torch.float16)],
)
def test_huge_gradients_are_scaled_and_not_lost(value: float, dtype: torch.dtype) -> None:
    """Their squares overflow; a norm of infinity would silently send zeros."""
    given_grads: Grads = [torch.tensor([value, -value], dtype=dtype)]
    (out,), _ = ClipByGlobalNorm(1.0).update(given_grads, {})
    assert out is not None
    torch.testing.assert_close(out, torch.tensor([1.0, -1.0], dtype=dtype) / math.sqrt(2))


@given(grads(), st.floats(1e-3, 1e3))
def test_no_coordinate_exceeds_max_abs(given_grads: Grads, max_abs: float) -> None:
    out, _ = ClipByValue(max_abs).update(given_grads, {})
    assert all(abs(v) <= max_abs for v in _flat(out))
    for before, after in zip(_flat(given_grads), _flat(out), strict=True):
        if abs(before) <= max_abs * (1 - 2**-8):
            assert after == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(max_abs=st.floats(1e-9, 10.0))
def test_every_half_precision_value_within_the_bound_is_unchanged_and_none_exceeds_it(
    dtype: torch.dtype, max_abs: float
) -> None:
    top = 0x7C00 if dtype == torch.float16 else 0x7F80  # the bits of infinity
    every = torch.arange(top, dtype=torch.int16).view(dtype)
    (out,), _ = ClipByValue(max_abs).update([every], {})
    assert out is not None
    within = every.double() <= max_abs
    assert torch.equal(out[within], every[within])
    assert bool((out.double() <= max_abs).all())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bounds_must_be_positive(value: float) -> None:
    with pytest.raises(ValueError, match="max_norm must be positive"):
        ClipByGlobalNorm(value)
    with pytest.raises(ValueError, match="max_abs must be positive"):
        ClipByValue(value)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e-9, 1.0, 1e17, 1e30])
def test_the_norm_of_long_gradients_is_right_to_double_precision(scale: float) -> None:
    """Rows of squares are summed in single precision, where that neither overflows nor vanishes."""
    rng = torch.Generator().manual_seed(8)
    given_grads: Grads = [torch.randn(n, generator=rng) * scale for n in (100_003, 5, 40_960)]
    wide = torch.cat([g.double() for g in given_grads if g is not None])
    exact = torch.linalg.vector_norm(wide).item()
    assert global_norm(given_grads) == pytest.approx(exact, rel=1e-8)
    (*out,), _ = ClipByGlobalNorm(exact / 3).update(given_grads, {})
    clipped = torch.cat([g.double() for g in out if g is not None])
    ratio = torch.linalg.vector_norm(clipped).item() / (exact / 3)
    assert (
        1 - (3e-6 if scale > 1e-30 else 1e-3) < ratio < 1 + (1e-7 if scale > 1e-30 else 1e-3)
    )  # denormals have few bits


@pytest.mark.parametrize("seed", [186, 3, 7])
def test_the_bound_holds_for_long_gradients_of_a_few_large_and_many_equal_numbers(
    seed: int,
) -> None:
    """Sums of squares in single precision made this norm too small by 7e-7."""
    rng = torch.Generator().manual_seed(seed)
    small, large = torch.rand(2, generator=rng).tolist()
    grad = torch.full((4096,), 2**-12 * (1 + small))
    grad.view(-1, 256)[:, :32] = 1 + large
    (clipped,), _ = ClipByGlobalNorm(1.0).update([grad], {})
    assert clipped is not None
    assert 1 - 3e-6 < clipped.double().norm().item() <= 1 + 1e-7


def test_a_long_gradient_just_above_the_bound_is_clipped() -> None:
    grad = torch.full((4096,), 1 / 64)
    grad *= (1 + 2e-7) / grad.double().norm().item()
    (clipped,), _ = ClipByGlobalNorm(1.0).update([grad], {})
    assert clipped is not None
    assert clipped.double().norm().item() <= 1 + 1e-7
