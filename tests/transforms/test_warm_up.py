from __future__ import annotations

import pytest
import torch

from gradguard import ErrorFeedback, Grads, KeepRandomK, KeepTopK, MomentumCorrection, Sign, WarmUp


def test_the_ratios_are_the_papers() -> None:
    """Deep Gradient Compression, section 3.3: 75 %, 93.75 %, 98.4375 %, 99.6 %, 99.9 % sparsity."""
    warm_up = WarmUp(KeepTopK(0.001), steps=10)
    stages = [warm_up.ratio(step) for step in range(5, 65, 10)]
    assert stages[:3] == [0.25, 0.0625, 0.015625]
    assert stages[3:] == pytest.approx([0.0039, 0.001, 0.001], rel=0.01)


def test_a_stage_has_as_many_steps_as_it_says_and_the_end_stays() -> None:
    warm_up = WarmUp(KeepTopK(0.05), steps=3)
    grad = torch.arange(1.0, 65.0)
    state, kept = warm_up.init([grad]), []
    for _ in range(8):
        (out,), state = warm_up.update([grad], state)
        assert out is not None
        kept.append(int(out.count_nonzero()))
    assert kept == [16, 16, 16, 4, 4, 4, 3, 3]


def test_the_ratio_of_a_million_steps_is_the_transforms_own() -> None:
    assert WarmUp(KeepTopK(1e-9), steps=1).ratio(10**6) == 1e-9


@pytest.mark.parametrize("wrapped", [None, ErrorFeedback, MomentumCorrection])
def test_how_many_are_kept_depends_on_the_step_alone(wrapped: type | None) -> None:
    warm_up = WarmUp(KeepTopK(0.01), steps=2)
    transform = (
        warm_up
        if wrapped is None
        else (MomentumCorrection(0.5, warm_up) if wrapped is MomentumCorrection else
              ErrorFeedback(warm_up))
    )  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    counts: list[list[int]] = []
    for scale in (1e-3, 1e3):
        state, kept = transform.init([torch.zeros(100)]), []
        for _ in range(6):
            (out,), state = transform.update([torch.randn(100, generator=rng) * scale], state)
            assert out is not None
            kept.append(int(out.count_nonzero()))
        counts.append(kept)
    assert counts[0] == counts[1] == [25, 25, 6, 6, 2, 2]


def test_a_step_without_gradients_counts_and_a_refused_one_does_not() -> None:
    warm_up = WarmUp(KeepTopK(0.5), steps=1)
    state = warm_up.init([torch.zeros(2)])
    none: Grads = [None]
    _, after = warm_up.update(none, state)
    assert after["step"] == 1
    with pytest.raises(ArithmeticError):
        warm_up.update([torch.tensor([float("nan"), 0.0])], after)
    assert after["step"] == 1


def test_warm_up_around_anything_but_top_k_is_refused() -> None:
    for transform in (Sign(), KeepRandomK(0.1), ErrorFeedback(KeepTopK(0.1))):
        with pytest.raises(TypeError, match="WarmUp changes the ratio of a KeepTopK, got"):
            WarmUp(transform, steps=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_steps_must_be_a_positive_integer(steps: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="steps must be"):
        WarmUp(KeepTopK(0.1), steps=steps)
