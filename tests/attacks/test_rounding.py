"""Scores become counts that sum to the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from gradguard.attacks.rounding import (
    Floats,
    largest_remainder,
    project_to_simplex,
    proportional,
    round_to_batch,
)

scores = st.tuples(st.integers(0, 5), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-1e14, 1e14))
)


@given(scores, st.integers(0, 300))
def test_counts_are_non_negative_and_sum_to_the_batch(points: Floats, batch: int) -> None:
    counts = round_to_batch(points, batch)
    assert counts.dtype == np.int64
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == batch).all()


@given(scores, st.floats(0.0, 100.0))
def test_projection_lands_on_the_simplex_and_is_idempotent(points: Floats, total: float) -> None:
    once = project_to_simplex(points, total)
    assert (once >= 0).all()
    np.testing.assert_allclose(once.sum(axis=1), total, atol=1e-6)
    np.testing.assert_allclose(project_to_simplex(once, total), once, atol=1e-6)


@given(scores, st.integers(0, 300))
def test_projection_keeps_the_order_of_entries(points: Floats, total: int) -> None:
    projected = project_to_simplex(points, total)
    order = np.argsort(points, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(projected, order, axis=1), axis=1) >= 0).all()


@given(scores, st.integers(0, 300))
def test_rounding_moves_no_entry_by_one_or_more(points: Floats, batch: int) -> None:
    shares = project_to_simplex(points, batch)
    assert (np.abs(largest_remainder(shares, batch) - shares) < 1 + 1e-6).all()


def test_projection_is_the_nearest_point() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        point = rng.normal(size=4) * 3

        def distance(x: Floats, point: Floats = point) -> float:
            return float(((x - point) ** 2).sum())

        found = minimize(
            distance,
            np.full(4, 1.25),
            bounds=[(0, None)] * 4,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 5},
        )
        np.testing.assert_allclose(project_to_simplex(point[None], 5)[0], found.x, atol=1e-3)


def test_integer_rows_are_kept_as_they_are() -> None:
    rows = np.random.default_rng(0).multinomial(17, np.full(6, 1 / 6), size=50)
    np.testing.assert_array_equal(round_to_batch(rows, 17), rows)
    np.testing.assert_array_equal(round_to_batch(rows + 1e-12, 17), rows)


def test_every_row_may_have_its_own_total() -> None:
    assert round_to_batch(np.ones((3, 4)), [1, 5, 8]).tolist() == [
        [1, 0, 0, 0],
        [2, 1, 1, 1],
        [2, 2, 2, 2],
    ]


def test_ties_go_to_the_lowest_index() -> None:
    assert largest_remainder([[0.5, 0.5, 0.5, 0.5]], 2).tolist() == [[1, 1, 0, 0]]


def test_weights_of_zero_are_spread_evenly() -> None:
    assert proportional([[0.0, 0.0, 0.0]], 4).tolist() == [[2, 1, 1]]


@pytest.mark.parametrize(
    ("points", "total", "words"),
    [
        ([[np.nan, 1.0]], 1, "finite"),
        ([[1.0, 1.0]], -1, "non-negative"),
        ([[1.0, 1.0]], np.nan, "non-negative"),
        ([1.0, 1.0], 2, "shape"),
        ([[1.0, 1.0]], [1, 2], "one total or 1"),
    ],
)
def test_unusable_scores_are_refused(points: object, total: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        project_to_simplex(points, total)  # type: ignore[arg-type]


def test_shares_that_do_not_sum_to_the_total_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to the total"):
        largest_remainder([[1.0, 1.0]], 3)
    with pytest.raises(ValueError, match="integers"):
        largest_remainder([[0.5, 1.0]], 1.5)
    with pytest.raises(ValueError, match="non-negative"):
        proportional([[-1.0, 1.0]], 3)
