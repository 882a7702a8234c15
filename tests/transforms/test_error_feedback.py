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
    NonFiniteGradientError,
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


def _shapes_of_every_kind() -> list[Tensor]:
    rng = torch.Generator().manual_seed(4)
    return [
        torch.randn(40_000, generator=rng),  # looked at alone
        torch.randn(3, 5, generator=rng).t(),
        torch.randn(4, 3, 3, 3, generator=rng).to(memory_format=torch.channels_last),
        torch.randn(6, generator=rng).half(),
        torch.randn((), generator=rng),
        torch.randn(2, 0, generator=rng),
        torch.randn(7, generator=rng).double(),
        torch.randn(300_000, generator=rng),  # in two pieces
    ]


@pytest.mark.parametrize("top_k", [KeepTopK(0.01), KeepTopK(0.05, scope="tensor")], ids=repr)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_pass_fused_with_top_k_is_bitwise_the_plain_one(
    top_k: KeepTopK, in_place: bool
) -> None:
    fused, plain = ErrorFeedback(top_k), ErrorFeedback(chain(top_k))  # a chain is not fused
    params = _shapes_of_every_kind()
    one, other = fused.init(params), plain.init(params)
    for step in range(4):
        given = [None if i == step else p * (step + 1) for i, p in enumerate(params)]
        expected, other = plain.update(list(given), other)
        update = fused.update_ if in_place else fused.update
        out, one = update(list(given), one)
        for a, b in zip(out, expected, strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.equal(a, b)
        for a, b in zip(one["memory"], other["memory"], strict=True):
            assert torch.equal(a, b)


def test_in_place_gradients_and_memory_stay_where_they_lie() -> None:
    feedback = ErrorFeedback(KeepTopK(0.5))
    grad = torch.tensor([1.0, 3.0])
    state = feedback.init([grad])
    memory = state["memory"][0]
    (out,), after = feedback.update_([grad], state)
    assert out is grad
    assert after["memory"][0] is memory
    assert (grad.tolist(), memory.tolist()) == ([0.0, 3.0], [1.0, 0.0])


def test_a_gradient_laid_out_unlike_its_memory_takes_the_plain_way() -> None:
    feedback = ErrorFeedback(KeepTopK(0.5))
    values = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    laid = [values, values.to(memory_format=torch.channels_last), values.expand(1, 4, 3, 2, 2)[0]]
    results = [feedback.update([g], feedback.init([values])) for g in laid]
    for (out,), state in results:
        assert out is not None
        assert torch.equal(out, results[0][0][0])  # type: ignore[arg-type]
        assert torch.equal(state["memory"][0], results[0][1]["memory"][0])


def test_what_is_owed_may_outgrow_half_precision_and_is_then_refused_unwritten() -> None:
    feedback = ErrorFeedback(KeepTopK(0.5))
    state = feedback.init([torch.zeros(2, dtype=torch.float16)])
    grad = torch.tensor([40_000.0, 50_000.0], dtype=torch.float16)
    _, state = feedback.update_([grad.clone()], state)  # sends the 50,000
    before, given = state["memory"][0].clone(), grad.clone()
    with pytest.raises(NonFiniteGradientError, match=r"does not fit torch\.float16"):
        feedback.update_([given], state)
    assert torch.equal(given, grad)
    assert torch.equal(state["memory"][0], before)


def test_what_half_precision_rounds_to_zero_shows_no_sign_in_any_layout() -> None:
    feedback = ErrorFeedback(KeepTopK(1.0))
    for gradient in (torch.zeros(2, 3), torch.zeros(3, 2).t()):
        half = gradient.to(torch.float16)
        state = feedback.init([half])
        state["memory"][0].fill_(-1e-9)
        (sent,), _ = feedback.update([half], state)
        assert sent is not None
        assert not torch.signbit(sent).any()
