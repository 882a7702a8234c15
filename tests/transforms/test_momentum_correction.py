from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gradguard import (
    AddGaussian,
    Cast,
    ClipByGlobalNorm,
    GradTransform,
    KeepTopK,
    MomentumCorrection,
    NonFiniteGradientError,
    Sign,
    WarmUp,
    chain,
    guard,
)

Array = NDArray[np.float64]


def _reference(
    gradients: list[list[Array]], momentum: float, count: int, *, nesterov: bool, masking: bool
) -> list[list[Array]]:
    """Algorithm 1 of the paper, slow and obvious: u = m u + g; v += u; send the top of v."""
    u = [np.zeros_like(g) for g in gradients[0]]
    v = [np.zeros_like(g) for g in gradients[0]]
    messages = []
    for step in gradients:
        for i, g in enumerate(step):
            u[i] = momentum * u[i] + g
            v[i] = v[i] + (g + momentum * u[i] if nesterov else u[i])
        ranked = sorted(
            ((-abs(v[i][j]), i, j) for i in range(len(v)) for j in range(len(v[i]))),
        )
        message = [np.zeros_like(g) for g in step]
        for _, i, j in ranked[:count]:
            message[i][j], v[i][j] = v[i][j], 0.0
            if masking:
                u[i][j] = 0.0
        messages.append(message)
    return messages


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_it_is_the_papers_algorithm_over_several_steps(
    nesterov: bool, masking: bool, in_place: bool, plain: bool
) -> None:
    rng = np.random.default_rng(3)
    gradients = [[rng.standard_normal(n) for n in (7, 1, 12)] for _ in range(12)]
    # In a chain top-k is a transform like any other, and no part of it is fused.
    inner: GradTransform = chain(KeepTopK(0.2)) if plain else KeepTopK(0.2)
    transform = MomentumCorrection(0.9, inner, nesterov=nesterov, masking=masking)
    state = transform.init([torch.zeros(n, dtype=torch.float64) for n in (7, 1, 12)])
    update = transform.update_ if in_place else transform.update
    expected = _reference(gradients, 0.9, 4, nesterov=nesterov, masking=masking)
    for step, message in zip(gradients, expected, strict=True):
        out, state = update([torch.from_numpy(g.copy()) for g in step], state)
        for got, wanted in zip(out, message, strict=True):
            assert got is not None
            np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-15)


@given(st.floats(0, 0.99), st.floats(0.01, 1), st.booleans(), st.booleans(), st.integers(0, 99))
def test_all_that_was_sent_plus_what_is_owed_is_the_sum_of_velocities(
    momentum: float, ratio: float, nesterov: bool, masking: bool, seed: int
) -> None:
    transform = MomentumCorrection(momentum, KeepTopK(ratio), nesterov=nesterov, masking=masking)
    rng = torch.Generator().manual_seed(seed)
    state = transform.init([torch.zeros(30)])
    sent, due = torch.zeros(30), torch.zeros(30)
    for _ in range(6):
        grad = torch.randn(30, generator=rng)
        velocity = momentum * state["velocity"][0] + grad
        due += grad + momentum * velocity if nesterov else velocity
        (out,), state = transform.update([grad], state)
        assert out is not None
        sent += out
    torch.testing.assert_close(sent + state["owed"][0], due, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", [KeepTopK(0.1), chain(KeepTopK(0.1))], ids=["fused", "plain"])
def test_where_something_was_sent_the_velocity_is_forgotten(inner: GradTransform) -> None:
    grad = torch.randn(50, generator=torch.Generator().manual_seed(1))
    for masking in (True, False):
        transform = MomentumCorrection(0.9, inner, masking=masking)
        (out,), state = transform.update([grad], transform.init([grad]))
        assert out is not None
        velocity, was_sent = state["velocity"][0], out != 0
        assert int(was_sent.sum()) == 5
        assert torch.equal(velocity, torch.where(was_sent, 0.0, grad) if masking else grad)
        assert not bool(state["owed"][0][was_sent].any())


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_everything_sent_it_is_dense_momentum(nesterov: bool) -> None:
    """Against torch's own SGD: the momentum inside and none outside, or the other way round."""
    torch.manual_seed(0)
    inside, outside = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    outside.load_state_dict(inside.state_dict())
    correction = MomentumCorrection(0.9, KeepTopK(1.0), nesterov=nesterov, masking=False)
    ours: Any = guard(torch.optim.SGD(inside.parameters(), lr=0.1), correction)
    theirs = torch.optim.SGD(outside.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    for _ in range(8):
        inputs = torch.randn(5, 4)
        for model, optimizer in ((inside, ours), (outside, theirs)):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
    for a, b in zip(inside.parameters(), outside.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_error_feedback_alone_would_lose_the_discount() -> None:
    """Power: momentum correction and momentum of what is sent are not the same thing."""
    transform = MomentumCorrection(0.5, KeepTopK(0.5), masking=False)
    state = transform.init([torch.zeros(2)])
    total = torch.zeros(2)
    for _ in range(2):
        (out,), state = transform.update([torch.tensor([1.0, 10.0])], state)
        assert out is not None
        total += out
    assert (total + state["owed"][0]).tolist() == [2.5, 25.0]  # 1 + (1 + 0.5), not 1 + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_memories_are_held_in_float32_and_rounding_is_owed(dtype: torch.dtype) -> None:
    transform = MomentumCorrection(0.9, KeepTopK(0.3))
    rng = torch.Generator().manual_seed(2)
    state = transform.init([torch.zeros(40, dtype=dtype)])
    sent, due = torch.zeros(40), torch.zeros(40)
    for _ in range(10):
        grad = torch.randn(40, generator=rng).to(dtype)
        due += 0.9 * state["velocity"][0] + grad.float()
        (out,), state = transform.update([grad], state)
        assert out is not None
        sent += out.float()
    assert {state[key][0].dtype for key in ("velocity", "owed")} == {torch.float32}
    torch.testing.assert_close(sent + state["owed"][0], due, rtol=0, atol=1e-4)


def test_a_parameter_without_gradient_keeps_both_memories() -> None:
    transform = MomentumCorrection(0.9, KeepTopK(0.5))
    grads: list[Tensor | None] = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    _, state = transform.update(grads, transform.init([torch.zeros(2), torch.zeros(2)]))
    (_, out), after = transform.update([grads[0], None], state)
    assert out is None
    for key in ("velocity", "owed"):
        assert torch.equal(after[key][1], state[key][1])


@pytest.mark.parametrize("inner", [KeepTopK(0.2), chain(KeepTopK(0.2))], ids=["fused", "plain"])
def test_an_update_that_overflows_is_refused_and_changes_nothing(inner: GradTransform) -> None:
    transform = MomentumCorrection(0.9, inner)
    grads: list[Tensor | None] = [torch.ones(3), torch.full((2,), 3e38)]
    state = transform.init([torch.zeros(3), torch.zeros(2)])
    _, state = transform.update(grads, state)
    given_grads, before = copy.deepcopy(grads), copy.deepcopy(state)
    with pytest.raises(NonFiniteGradientError) as caught:
        transform.update_(given_grads, state)
    assert caught.value.index == 1
    for old, new in zip(given_grads, grads, strict=True):
        assert old is not None
        assert new is not None
        assert torch.equal(old, new)
    for key in ("velocity", "owed"):
        assert all(torch.equal(a, b) for a, b in zip(state[key], before[key], strict=True))


@pytest.mark.parametrize("noisy", [AddGaussian(1.0), chain(KeepTopK(0.1), AddGaussian(0.1))])
def test_noise_inside_is_refused(noisy: GradTransform) -> None:
    with pytest.raises(ValueError, match=r"MomentumCorrection around .* would take the noise back"):
        MomentumCorrection(0.9, noisy)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_must_lie_in_zero_to_one(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
        MomentumCorrection(momentum, KeepTopK(0.1))


def test_the_whole_of_deep_gradient_compression_trains() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 4)
    inputs = torch.randn(64, 20)
    targets = inputs @ torch.randn(20, 4)
    defence = chain(
        ClipByGlobalNorm(5.0), MomentumCorrection(0.9, WarmUp(KeepTopK(0.05), steps=20))
    )
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.02), defence)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("inner", [Sign(), chain(KeepTopK(0.5), Cast("float16"))], ids=repr)
def test_around_any_other_transform_sent_plus_owed_is_still_the_sum(inner: GradTransform) -> None:
    transform = MomentumCorrection(0.5, inner)
    state = transform.init([torch.zeros(3, 4).t()])
    sent, due = torch.zeros(4, 3), torch.zeros(4, 3)
    for step in range(5):
        grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        due += 0.5 * state["velocity"][0] + grad
        (out,), state = transform.update_([grad.clone()], state)
        assert out is not None
        sent += out
    torch.testing.assert_close(sent + state["owed"][0], due)


def test_a_value_that_its_dtype_rounds_to_zero_is_not_forgotten_in_any_layout() -> None:
    correction = MomentumCorrection(0.5, KeepTopK(1.0))
    for gradient in (torch.zeros(2, 3), torch.zeros(3, 2).t()):
        half = gradient.to(torch.float16)
        state = correction.init([half])
        state["velocity"][0].fill_(1e-9)
        _, state = correction.update([half], state)
        assert torch.equal(state["velocity"][0], torch.full_like(state["velocity"][0], 5e-10))
