from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradguard import ErrorFeedback, LowRank, NonFiniteGradientError, State
from gradguard.kernels.low_rank_product import outer_sum
from gradguard.testing import check_transform


def _normal(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng)


def _of_rank(rank: int, *, rows: int = 12, columns: int = 20, seed: int = 0) -> Tensor:
    return _normal(rows, rank, seed=seed) @ _normal(rank, columns, seed=seed + 1)


def _truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    best: Tensor = u[:, :rank] * s[:rank] @ vh[:rank]
    return best


def _sent(transform: LowRank, grad: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    state = transform.init([grad]) if state is None else state
    (out,), state = transform.update([grad], state)
    assert out is not None
    return out, state


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_all_laws_hold_alone_and_under_error_feedback(rank: int) -> None:
    check_transform(LowRank(rank))
    check_transform(ErrorFeedback(LowRank(rank)))


@given(rank=st.integers(1, 4), true=st.integers(1, 4), seed=st.integers(0, 1000))
def test_a_matrix_of_no_higher_rank_is_sent_unchanged_up_to_rounding(
    rank: int, true: int, seed: int
) -> None:
    matrix = _of_rank(min(true, rank), seed=seed)
    out, _ = _sent(LowRank(rank), matrix)
    torch.testing.assert_close(out, matrix, rtol=0, atol=2e-5 * float(matrix.abs().max()))


@given(rank=st.integers(1, 4), seed=st.integers(0, 1000))
def test_what_is_sent_has_at_most_that_rank(rank: int, seed: int) -> None:
    out, _ = _sent(LowRank(rank), _normal(12, 20, seed=seed))
    values = torch.linalg.svdvals(out)
    assert values[rank] <= 1e-5 * values[0]
    assert values[rank - 1] > 1e-3 * values[0]  # and no lower one


@given(seed=st.integers(0, 1000))
def test_what_is_left_out_is_orthogonal_to_what_is_sent(seed: int) -> None:
    """A projection: a wrong scale of either factor would leave some of the direction behind."""
    matrix = _normal(12, 20, seed=seed)
    out, _ = _sent(LowRank(3), matrix)
    assert abs(float(((matrix - out) * out).sum())) <= 1e-4 * float((matrix * matrix).sum())
    assert out.norm() <= matrix.norm()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_gradient_that_stays_the_same_converges_to_the_truncated_svd(rank: int) -> None:
    u, _ = torch.linalg.qr(_normal(12, 12))
    v, _ = torch.linalg.qr(_normal(20, 12, seed=1))
    matrix = u * torch.tensor([2.0**-i for i in range(12)]) @ v.t()
    best, state, errors = _truncated(matrix, rank), None, []
    for _ in range(12):
        out, state = _sent(LowRank(rank), matrix, state)
        errors.append(float((out - best).norm()))
    assert errors[-1] < 1e-5
    assert errors[0] > 1e-3  # one step from a random start does not find it


def test_without_the_warm_start_the_error_stays() -> None:
    """The test above would not notice if every step began anew; this one shows that it matters."""
    matrix = _normal(30, 40)
    best = _truncated(matrix, 2)
    first, state = _sent(LowRank(2), matrix)
    for _ in range(60):
        out, state = _sent(LowRank(2), matrix, state)
    assert float((out - best).norm()) < 0.2 * float((first - best).norm())


@pytest.mark.parametrize(
    "shape", [(), (0,), (7,), (0, 4), (4, 0), (1, 50), (50, 1), (2, 2), (4, 4, 0)]
)
def test_what_the_factors_would_not_shorten_passes_bitwise(shape: tuple[int, ...]) -> None:
    grad = _normal(*shape)
    out, state = _sent(LowRank(2), grad)
    assert torch.equal(out, grad)
    assert state["factors"][0]["p"].numel() == state["factors"][0]["q"].numel() == 0


def test_the_limit_is_where_the_factors_are_no_smaller() -> None:
    for columns, shortened in ((4, False), (5, True)):  # 2 * (4 + 4) = 4 * 4
        _, state = _sent(LowRank(2), _normal(4, columns))
        assert bool(state["factors"][0]["p"].numel()) is shortened


def test_a_zero_gradient_gives_exact_zeros_and_keeps_the_warm_start() -> None:
    transform, matrix = LowRank(2), _normal(12, 20)
    _, state = _sent(transform, matrix)
    out, after = _sent(transform, torch.zeros(12, 20), state)
    assert not bool(out.any())
    assert not bool(torch.signbit(out).any())
    assert torch.equal(after["start"][0], state["start"][0])
    torch.testing.assert_close(
        _sent(transform, matrix, after)[0], _sent(transform, matrix, state)[0], rtol=0, atol=0
    )


def test_a_message_follows_a_gradient_of_zeros_in_the_first_step() -> None:
    """The published step keeps the zero factor as its start and sends zeros for ever."""
    transform = LowRank(1)
    _, state = _sent(transform, torch.zeros(12, 20))
    matrix = _of_rank(1)
    out, _ = _sent(transform, matrix, state)
    torch.testing.assert_close(out, matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", [0, 3, 11])
def test_zero_and_parallel_columns_give_no_nan_and_can_be_left_again(used: int) -> None:
    """One nonzero row, then another: nothing of the old subspace is of use in the second."""
    transform, state = LowRank(3), None
    for row in (used, (used + 5) % 12):
        matrix = torch.zeros(12, 20)
        matrix[row, row] = 3.0
        for _ in range(3):
            out, state = _sent(transform, matrix, state)
            assert bool(torch.isfinite(out).all())
        torch.testing.assert_close(out, matrix, rtol=1e-5, atol=1e-5)


def test_a_gradient_with_one_column_repeated_is_sent_unchanged() -> None:
    matrix = _normal(12, 1).expand(12, 20).contiguous()
    out, _ = _sent(LowRank(4), matrix)
    torch.testing.assert_close(out, matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exponent", [-140, -120, -100, 0, 100, 120])
def test_tiny_and_huge_gradients_are_sent_as_well_as_others(exponent: int) -> None:
    matrix = _of_rank(1) * 2.0**exponent
    out, _ = _sent(LowRank(2), matrix)
    smallest = math.ldexp(1.0, -149)  # below, float32 has no numbers to round to
    tolerance = max(1e-4 * float(matrix.abs().max()), 12 * smallest)
    torch.testing.assert_close(out, matrix, rtol=0, atol=tolerance)


def test_a_product_past_the_largest_number_is_refused() -> None:
    matrix = torch.full((12, 20), 3.4e38)
    matrix[::2, ::3] *= -1
    matrix[0] = 0
    state = LowRank(1).init([matrix])
    try:
        out, _ = _sent(LowRank(1), matrix, state)
    except NonFiniteGradientError:
        return
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    matrix = _of_rank(2).to(dtype)
    out, state = _sent(LowRank(2), matrix)
    assert state["factors"][0]["p"].dtype == torch.float32
    wide, _ = _sent(LowRank(2), matrix.float())
    assert torch.equal(out, wide.to(dtype))
    large = torch.full((12, 20), 1000.0, dtype=dtype)  # its squares do not fit float16
    torch.testing.assert_close(_sent(LowRank(1), large)[0], large)


def test_under_autocast_nothing_is_computed_in_low_precision() -> None:
    matrix = _of_rank(2)
    plain, _ = _sent(LowRank(2), matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = _sent(LowRank(2), matrix)
    assert torch.equal(out, plain)


def test_a_kernel_is_the_matrix_of_its_filters_whatever_the_memory_layout() -> None:
    kernel = _normal(8, 3, 3, 3)
    plain, state = _sent(LowRank(2), kernel)
    assert [tuple(f.shape) for f in state["factors"][0].values()] == [(8, 2), (27, 2)]
    last, _ = _sent(LowRank(2), kernel.to(memory_format=torch.channels_last))
    assert torch.equal(plain, last)
    flat, _ = _sent(LowRank(2), kernel.reshape(8, 27))
    assert torch.equal(plain.reshape(8, 27), flat)


@given(rank=st.integers(1, 4), seed=st.integers(0, 100), double=st.booleans())
def test_the_factors_in_the_state_are_the_message_to_the_last_bit(
    rank: int, seed: int, double: bool
) -> None:
    matrix = _normal(12, 20, seed=seed)
    matrix = matrix.double() if double else matrix
    out, state = _sent(LowRank(rank), matrix)
    assert torch.equal(outer_sum(**state["factors"][0]), out)


def test_a_parameter_without_gradient_has_zero_factors_and_keeps_its_start() -> None:
    transform = LowRank(1)
    params = [_normal(12, 20), _normal(20, 12)]
    _, state = transform.update([*params], transform.init(params))
    out, after = transform.update([None, params[1]], state)
    assert out[0] is None
    assert not any(bool(f.any()) for f in after["factors"][0].values())
    assert torch.equal(after["start"][0], state["start"][0])


def test_two_clients_begin_with_the_same_subspace_and_no_generator_is_kept() -> None:
    """The start is no noise: two clients with equal gradients send equal messages."""
    matrix = _normal(12, 20)
    (one, first), (other, _) = _sent(LowRank(2), matrix), _sent(LowRank(2), matrix)
    assert torch.equal(one, other)
    assert set(first) == {"start", "factors"}


def test_error_feedback_sends_a_constant_gradient_in_the_mean() -> None:
    matrix, feedback = _normal(12, 20), ErrorFeedback(LowRank(1))
    state, total, steps = feedback.init([matrix]), torch.zeros(12, 20), 200
    for _ in range(steps):
        (out,), state = feedback.update([matrix], state)
        assert out is not None
        total += out
    torch.testing.assert_close(total + state["memory"][0], matrix * steps, rtol=1e-4, atol=2e-2)
    # Without feedback the mean would stay at the best approximation of rank one.
    missing = float((total / steps - matrix).norm())
    assert missing < 0.2 * float((_truncated(matrix, 1) - matrix).norm())


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must be at least 1"):
        LowRank(rank)


@pytest.mark.parametrize("rank", [1.0, True, "2", None])
def test_a_rank_that_is_no_integer_is_refused(rank: object) -> None:
    with pytest.raises(TypeError, match="rank must be an integer"):
        LowRank(rank)  # type: ignore[arg-type]


def test_the_message_does_not_depend_on_where_in_memory_the_gradient_begins() -> None:
    values = torch.randn(33, 47, generator=torch.Generator().manual_seed(0))
    buffer = torch.zeros(values.numel() + 1)
    shifted = buffer[1:].view(33, 47).copy_(values)
    low_rank = LowRank(2)
    (one,), _ = low_rank.update([values], low_rank.init([values]))
    (other,), _ = low_rank.update([shifted], low_rank.init([values]))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
