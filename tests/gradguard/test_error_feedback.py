from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradguard import (
    AddGaussian,
    AddLaplace,
    Cast,
    ClipByValue,
    ErrorFeedback,
    GradTransform,
    KeepTopK,
    NamedParameters,
    Only,
    Quantize,
    Sign,
    Withhold,
    chain,
)
from gradguard.testing import transforms

PARAMS = NamedParameters({"body.weight": torch.zeros(4, 3), "head.bias": torch.zeros(5)})


@given(transforms("ErrorFeedback"), st.integers(0, 100))
def test_all_that_was_sent_plus_the_memory_is_the_sum_of_gradients(
    transform: GradTransform, seed: int
) -> None:
    assert isinstance(transform, ErrorFeedback)
    params = NamedParameters({**_named(PARAMS), "x.bias": torch.zeros(2)})
    rng = torch.Generator().manual_seed(seed)
    state = transform.init(params)
    total = [torch.zeros_like(p) for p in params]
    sent = [torch.zeros_like(p) for p in params]
    for _ in range(5):
        grads = [torch.randn(p.shape, generator=rng) for p in params]
        try:
            out, state = transform.update(list(grads), state)
        except ArithmeticError:  # a Cast whose memory outgrew its format says so
            assert "Cast" in repr(transform)
            return
        for t, s, g, o in zip(total, sent, grads, out, strict=True):
            assert o is not None
            t += g
            s += o
    for t, s, m in zip(total, sent, state["memory"], strict=True):
        # Random-k at a small ratio lets the memory grow, and rounding with it.
        scale = max(1.0, float(m.abs().max()), float(s.abs().max()))
        torch.testing.assert_close(s + m, t, rtol=1e-5, atol=1e-5 * scale)


def _named(params: NamedParameters) -> dict[str, Tensor]:
    return dict(zip(params.names, params, strict=True))


def test_a_dropped_coordinate_is_sent_once_its_sum_is_large_enough() -> None:
    feedback = ErrorFeedback(KeepTopK(0.5))
    state = feedback.init([torch.zeros(2)])
    sent = []
    for _ in range(4):
        (out,), state = feedback.update([torch.tensor([2.0, 3.0])], state)
        assert out is not None
        sent.append(out.tolist())
    assert sent == [[0, 3], [4, 0], [0, 6], [4, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_memory_is_held_in_float32_and_collects_what_half_precision_rounds_away(
    dtype: torch.dtype,
) -> None:
    feedback = ErrorFeedback(ClipByValue(1.0))
    state = feedback.init([torch.zeros(1, dtype=dtype)])
    assert state["memory"][0].dtype == torch.float32
    for _ in range(100):
        (out,), state = feedback.update([torch.full((1,), 1.5, dtype=dtype)], state)
        assert out is not None
        assert out.item() == 1.0
    assert state["memory"][0].item() == pytest.approx(50.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_rounding_to_the_gradients_dtype_takes_away_is_owed_too(dtype: torch.dtype) -> None:
    feedback = ErrorFeedback(Sign())  # its mean magnitude is no half-precision number
    rng = torch.Generator().manual_seed(0)
    state = feedback.init([torch.zeros(50, dtype=dtype)])
    total, sent = torch.zeros(50), torch.zeros(50)
    for _ in range(20):
        grad = torch.randn(50, generator=rng).to(dtype)
        (out,), state = feedback.update([grad], state)
        assert out is not None
        total += grad.float()
        sent += out.float()
    torch.testing.assert_close(sent + state["memory"][0], total, rtol=0, atol=1e-4)


def test_memory_of_float64_stays_float64() -> None:
    state = ErrorFeedback(Sign()).init([torch.zeros(1, dtype=torch.float64)])
    assert state["memory"][0].dtype == torch.float64


def test_sign_with_feedback_does_not_lose_a_constant_gradient() -> None:
    """A published memory scales by the learning rate except in the first step: 10, then 1."""
    feedback = ErrorFeedback(Sign())
    state = feedback.init([torch.zeros(3)])
    for _ in range(3):
        (out,), state = feedback.update([torch.ones(3)], state)
        assert out is not None
        assert out.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "noisy",
    [
        AddGaussian(1.0),
        chain(KeepTopK(0.1), AddLaplace(1.0)),
        Only("*", chain(Quantize(4), AddGaussian(0.0))),
    ],
    ids=repr,
)
def test_feedback_around_noise_is_refused(noisy: GradTransform) -> None:
    with pytest.raises(ValueError, match="would take the noise back"):
        ErrorFeedback(noisy)
    with pytest.raises(ValueError, match="would take the noise back"):
        Only("*", ErrorFeedback(chain(Cast("float16"), noisy)))


def test_noise_before_or_after_feedback_is_allowed() -> None:
    chain(AddGaussian(1.0), ErrorFeedback(KeepTopK(0.1)))
    chain(ErrorFeedback(KeepTopK(0.1)), AddGaussian(1.0))


def test_feedback_around_withhold_remembers_and_sends_nothing() -> None:
    feedback = ErrorFeedback(Withhold("head.*"))
    state = feedback.init(PARAMS)
    for step in range(1, 4):
        out, state = feedback.update([torch.ones(4, 3), torch.ones(5)], state)
        assert out[1] is not None
        assert not bool(out[1].any())
        assert state["memory"][1].tolist() == [float(step)] * 5
