from __future__ import annotations

import pickle

import pytest
import torch

from gradguard import (
    AddGaussian,
    AddLaplace,
    Grads,
    GradTransform,
    KeepRandomK,
    NonFiniteGradientError,
    Sign,
)
from gradguard.finite import check_finite, is_finite
from gradguard.kernels.elementwise import map_present, restore


def test_a_sum_that_overflows_is_not_taken_for_infinity() -> None:
    assert is_finite(torch.full((10,), 3e38))
    assert is_finite(torch.full((100,), 6e4, dtype=torch.float16))


@pytest.mark.parametrize("values", [[float("inf"), -float("inf")], [float("nan")], [1, -1e400]])
def test_opposite_infinities_do_not_cancel(values: list[float]) -> None:
    assert not is_finite(torch.tensor(values))


def test_empty_and_absent_gradients_are_finite() -> None:
    check_finite([None, torch.zeros(0), torch.zeros(())])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_complex_and_integer_gradients_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="parameter 1 has dtype"):
        check_finite([None, torch.zeros(2, dtype=dtype)])


def test_the_error_survives_pickling_with_its_name() -> None:
    error = NonFiniteGradientError(3, name="fc.bias")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.index, copy.name, str(copy)) == (3, "fc.bias", str(error))


def test_half_precision_is_computed_in_float32_and_brought_back() -> None:
    grads: Grads = [torch.tensor([300.0], dtype=torch.float16)]
    (out,) = map_present(lambda g: (g * g) / 1000, grads)  # 90,000 does not fit float16
    assert out is not None
    assert (out.dtype, out.item()) == (torch.float16, 90.0)


def test_layout_is_brought_back() -> None:
    like = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    out = restore(torch.arange(120.0).view(2, 3, 4, 5), like, index=0)
    assert out.stride() == like.stride()
    assert out.reshape(-1).tolist() == list(range(120))


def test_expanded_gradients_are_transformed_without_writing_through() -> None:
    """The gradient of a sum is one number expanded over the whole tensor."""
    grad = torch.ones(()).expand(3, 2)
    (out,) = map_present(lambda g: g * 2, [grad])
    assert out is not None
    assert out.tolist() == [[2.0, 2.0]] * 3


@pytest.mark.parametrize(
    ("transform", "value"),
    [(AddGaussian(3e38), 3e38), (AddLaplace(3e38), 3e38), (KeepRandomK(0.1), 3e38)],
    ids=repr,
)
def test_a_result_past_the_largest_number_is_refused_and_not_sent_as_infinity(
    transform: GradTransform, value: float
) -> None:
    grad = torch.full((1000,), value)
    with pytest.raises(NonFiniteGradientError, match=r"does not fit torch\.float32"):
        transform.update([grad], transform.init([grad]))


def test_the_sign_of_float64_whose_sum_overflows_is_refused() -> None:
    grad = torch.full((3,), 1.7e308, dtype=torch.float64)
    with pytest.raises(NonFiniteGradientError, match=r"does not fit torch\.float64"):
        Sign().update([grad], {})
