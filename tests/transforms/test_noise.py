"""Noise has the stated distribution: the right scale passes and 2/3 and 3/2 of it fail."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from gradguard import AddGaussian, AddLaplace, GradTransform, chain
from gradguard.randomness import reseeded

SIZE = 5000
SHAPES: dict[str, torch.Size] = {
    "flat": torch.Size([SIZE]),
    "matrix": torch.Size([SIZE // 50, 50]),
}


def _noise(transform: GradTransform, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    state = reseeded(transform.init([]), 42)
    (out,), _ = transform.update([torch.zeros(shape, dtype=dtype)], state)
    assert out is not None
    return out.double().reshape(-1)


def _p_value(noise: Tensor, law: str, scale: float) -> float:
    return float(stats.kstest(noise.numpy(), law, args=(0.0, scale)).pvalue)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("kind", "law"), [(AddGaussian, "norm"), (AddLaplace, "laplace")])
def test_noise_scale_is_accepted_and_its_neighbours_are_rejected(
    kind: type[AddGaussian], law: str, scale: float, shape: str, dtype: torch.dtype
) -> None:
    noise = _noise(kind(scale), SHAPES[shape], dtype)
    assert _p_value(noise, law, scale) > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert _p_value(noise, law, scale * wrong) < 1e-9


def test_standard_deviations_are_as_stated() -> None:
    size = torch.Size([200_000])
    assert float(_noise(AddGaussian(2.0), size, torch.float32).std()) == pytest.approx(2, rel=0.01)
    laplace = float(_noise(AddLaplace(2.0), size, torch.float32).std())
    assert laplace == pytest.approx(2 * 2**0.5, rel=0.02)


def test_coordinates_parameters_and_steps_are_independent() -> None:
    transform = AddGaussian(1.0)
    state = reseeded(transform.init([]), 0)
    rows = []
    for _ in range(2):
        out, state = transform.update([torch.zeros(SIZE), torch.zeros(SIZE)], state)
        rows += [g for g in out if g is not None]
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(4)
    assert float(correlation.abs().max()) < 6 / SIZE**0.5


def test_two_noises_in_one_chain_add_up_in_variance() -> None:
    noise = _noise(chain(AddGaussian(3.0), AddGaussian(4.0)), torch.Size([SIZE]), torch.float32)
    assert _p_value(noise, "norm", 5.0) > 1e-3


def test_noise_is_added_to_the_gradient() -> None:
    transform = AddGaussian(1e-3)
    grad = torch.linspace(-5, 5, 100)
    (out,), _ = transform.update([grad], transform.init([]))
    assert out is not None
    assert float((out - grad).abs().max()) < 0.01


def test_laplace_never_draws_infinity_at_the_ends_of_its_generator() -> None:
    """A uniform draw of exactly 0 is the centre here, not a tail."""
    transform = AddLaplace(1.0)
    state = transform.init([])
    out, _ = transform.update([torch.zeros(300_000)], state)
    assert out[0] is not None
    assert bool(torch.isfinite(out[0]).all())


def test_half_precision_overflow_is_refused() -> None:
    transform = AddGaussian(1e5)
    with pytest.raises(ArithmeticError, match=r"does not fit torch\.float16"):
        transform.update([torch.zeros(1000, dtype=torch.float16)], transform.init([]))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_scales_must_be_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ValueError, match="stddev must be at least 0 and finite"):
        AddGaussian(value)
    with pytest.raises(ValueError, match="scale must be at least 0 and finite"):
        AddLaplace(value)
