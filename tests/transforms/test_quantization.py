"""QSGD, TernGrad and scaled signs: levels, unbiasedness and the bugs of published versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gradguard import Grads, GradTransform, Quantize, Sign, State, Ternary
from gradguard.kernels.elementwise import map_present
from gradguard.randomness import generator
from gradguard.testing import LawBrokenError, check_unbiased
from gradguard.transforms import quantization

GRAD = torch.tensor([0.7, -1.3, 0.01, 0.0, 2.0, -0.4])
UNBIASED: list[GradTransform] = [Quantize(1), Quantize(2), Quantize(4), Quantize(16), Ternary()]


def _sent(transform: GradTransform, grad: Tensor) -> Tensor:
    (out,), _ = transform.update([grad], transform.init([grad]))
    assert out is not None
    return out


@pytest.mark.parametrize("transform", UNBIASED, ids=repr)
def test_expected_output_is_the_gradient(transform: GradTransform) -> None:
    check_unbiased(transform, grad=GRAD)


@dataclass(frozen=True)
class ClippedTernary:
    """TernGrad with the clip at 2.5 deviations that the paper adds: biased."""

    def init(self, params: Sequence[Tensor]) -> State:
        return Ternary().init(params)

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        clipped = map_present(lambda g: g.clamp(-2.5 * g.std(), 2.5 * g.std()), grads)
        return Ternary().update(clipped, state)


@dataclass(frozen=True)
class HalfUp:
    """Rounds to the nearest of a few levels, without a draw: biased."""

    bits: int

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        steps = 2 ** (self.bits - 1) - 1
        return map_present(
            lambda g: (g / g.abs().max() * steps).round() / steps * g.abs().max(), grads
        ), state


@pytest.mark.parametrize("transform", [ClippedTernary(), HalfUp(4)], ids=repr)
def test_biased_variants_fail_the_check(transform: GradTransform) -> None:
    grad = torch.cat([torch.linspace(-0.1, 0.1, 30), torch.tensor([3.0])])
    with pytest.raises(LawBrokenError, match="check_unbiased"):
        check_unbiased(transform, grad=grad, draws=2000)


@given(bits=st.integers(1, 16), seed=st.integers(0, 1000))
def test_levels_fit_in_the_bits_and_within_the_largest_magnitude(bits: int, seed: int) -> None:
    grad = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    out = _sent(Quantize(bits), grad)
    assert len(set(out.tolist())) <= 2**bits
    assert float(out.abs().max()) <= float(grad.abs().max())
    if bits > 1:
        step = grad.abs().max() / (2 ** (bits - 1) - 1)
        assert bool(((out - grad).abs() <= step * 1.001).all())  # never past the next level


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_top_level_is_never_exceeded(bits: int) -> None:
    """In one published version 127 / norm * |x| may exceed 127 and wrap round to -128."""
    for value in (1.0, 0.1, 3.3333333, 1e-42, 3.4e38, 1.1754944e-38):
        grad = torch.full((64,), value)
        grad[::2] *= -1
        out = _sent(Quantize(bits), grad)
        assert bool((out.abs() <= grad.abs()).all())
        if bits > 1:
            assert torch.equal(out, grad)


@given(st.sampled_from(UNBIASED), st.integers(1, 20))
def test_a_zero_tensor_stays_zero(transform: GradTransform, n: int) -> None:
    assert not bool(_sent(transform, torch.zeros(n)).any())


@dataclass(frozen=True)
class Scripted:
    """Random words that hold given draws, over and over."""

    draws: Sequence[int]

    def random_raw(self, size: int) -> NDArray[np.uint64]:
        return np.resize(np.array(self.draws, dtype=np.int16), 4 * size).view(np.uint64)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 7, 8, 9, 12, 16])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, 0.3, -0.7123, 2.0**-20, 0.49999, -1e-9])
def test_chances_are_the_nearest_multiple_of_a_65536th(
    bits: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all 65,536 draws, each once, the mean is the gradient on that grid."""
    monkeypatch.setattr(quantization, "words_from", lambda _: Scripted(range(-32768, 32768)))
    spacing = 2.0 if bits == 1 else 1 / (2 ** (bits - 1) - 1)
    grad = torch.full((65_540,), value)
    grad[65_536:] = 1.0  # the largest
    mean = _sent(Quantize(bits), grad)[:65_536].double().mean().item()
    # The second part is single precision, in which the gradient is given.
    assert abs(mean - grad[0].item()) <= spacing * (2**-17 + 2**-20) + 2**-24
    if abs(value) == 1.0:
        assert mean == value


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("draw", [-32768, -1, 0, 32767])
def test_the_largest_and_zero_come_out_exactly_with_the_least_and_the_greatest_draw(
    bits: int, draw: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "words_from", lambda _: Scripted([draw]))
    for value in (1.0, 0.1, 3.3333333, 1e-42, 3.4e38, 7.77e-31):
        grad = torch.tensor([value, -value, 0.0, -0.0])
        out = _sent(Quantize(bits), grad)
        assert torch.equal(out, grad)
        assert not bool(torch.signbit(out[2:]).any())


@pytest.mark.parametrize("value", [2.5, -2.5, 1e-44, -3.4e38])
@pytest.mark.parametrize("n", [1, 7])
def test_ternary_sends_one_element_and_constant_tensors_exactly(value: float, n: int) -> None:
    """A published version decodes them to zero: their standard deviation is zero."""
    grad = torch.full((n,), value)
    assert torch.equal(_sent(Ternary(), grad), grad)


def test_ternary_never_has_the_wrong_sign() -> None:
    grad = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    out = _sent(Ternary(), grad)
    assert bool((out * grad >= 0).all())
    largest = float(grad.abs().max())
    assert set(out.tolist()) == {-largest, 0.0, largest}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("transform", [*UNBIASED, Sign()], ids=repr)
def test_other_dtypes_work(transform: GradTransform, dtype: torch.dtype) -> None:
    grad = (GRAD * 3e4).to(dtype)
    out = _sent(transform, grad)
    assert out.dtype == dtype
    assert float(out.abs().max()) <= float(grad.abs().max())


def test_sign_keeps_signs_zeros_and_the_sum_of_magnitudes() -> None:
    out = _sent(Sign(), GRAD)
    assert torch.equal(out.sign(), GRAD.sign())
    dense = GRAD[GRAD != 0]
    torch.testing.assert_close(_sent(Sign(), dense).abs().sum(), dense.abs().sum())


def test_sign_of_two_values_decodes_right() -> None:
    """A published one-bit codec decodes [-1, -1, 2, 2] to [507, 507, 510, 510]."""
    assert _sent(Sign(), torch.tensor([-1.0, -1.0, 2.0, 2.0])).tolist() == [-1.5, -1.5, 1.5, 1.5]


def test_sign_of_huge_values_does_not_overflow() -> None:
    grad = torch.full((100,), 3e38)
    torch.testing.assert_close(_sent(Sign(), grad), grad)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_bits_must_lie_in_one_to_sixteen(bits: int) -> None:
    with pytest.raises(ValueError, match="bits must lie in 1 to 16"):
        Quantize(bits)


@pytest.mark.parametrize("bits", [4.0, True, "4"])
def test_bits_must_be_an_integer(bits: object) -> None:
    with pytest.raises(TypeError, match="bits must be an integer"):
        Quantize(bits)  # type: ignore[arg-type]


def test_draws_come_from_the_state_alone() -> None:
    """A published random-k seeds the user's global generator with public values."""
    transform = Quantize(2)
    state = transform.init([])
    torch.manual_seed(0)
    first, _ = transform.update([GRAD], state)
    torch.manual_seed(1)
    second, after = transform.update([GRAD], state)
    assert first[0] is not None
    assert second[0] is not None
    assert torch.equal(first[0], second[0])
    assert generator(after["rng"]).initial_seed() == 0  # says nothing about the stream


@dataclass(frozen=True)
class Undefined:
    """Zero divided by zero."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if g is None else g * 0 / 0 for g in grads], state


def test_nan_is_not_taken_for_unbiased() -> None:
    with pytest.raises(LawBrokenError, match="off by nan"):
        check_unbiased(Undefined(), grad=torch.ones(3), draws=100)


def test_one_draw_is_too_few_to_tell_a_bias() -> None:
    with pytest.raises(ValueError, match="at least 100"):
        check_unbiased(Sign(), grad=torch.tensor([1.0, 3.0]), draws=1)
