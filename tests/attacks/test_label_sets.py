"""Sets of classes as label counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradguard.attacks.label_sets import fill_greedily, ranks, spread_over_set
from gradguard.attacks.rounding import Floats

rows = st.integers(2, 7).flatmap(
    lambda c: arrays(np.float64, (3, c), elements=st.integers(-16, 16).map(float))
)


@given(rows, st.integers(1, 30))
def test_rows_sum_to_the_batch_and_no_class_outside_the_set_is_named(
    scores: Floats, size: int
) -> None:
    scores[:, 0] = -1.0  # at least one member
    members = scores < 0
    counts = spread_over_set(scores, members, np.full(3, size))
    assert (counts.sum(axis=1) == size).all()
    assert not counts[~members].any()
    for row, kept in zip(counts, members, strict=True):
        named = row[kept]
        assert named.max() - named.min() <= 1  # evenly
        assert (named > 0).sum() == min(kept.sum(), size)  # each once, while the batch lasts


def test_lowest_scores_are_kept_and_get_the_odd_examples() -> None:
    scores = np.array([[-1.0, -3.0, -2.0, 5.0]])
    members = np.array([[True, True, True, False]])
    assert spread_over_set(scores, members, np.array([2])).tolist() == [[0, 1, 1, 0]]
    assert spread_over_set(scores, members, np.array([7])).tolist() == [[2, 3, 2, 0]]


def test_equal_scores_go_by_class_index() -> None:
    scores = np.zeros((1, 3))
    assert spread_over_set(scores, scores == 0, np.array([4])).tolist() == [[2, 1, 1]]


def test_an_empty_set_is_the_classes_without_a_positive_score_or_all() -> None:
    scores = np.array([[1.0, 0.0, 2.0, 0.0], [1.0, 3.0, 2.0, 4.0]])
    none = np.zeros(scores.shape, dtype=bool)
    assert spread_over_set(scores, none, np.array([4, 4])).tolist() == [[0, 2, 0, 2], [1, 1, 1, 1]]


@given(rows, st.integers(1, 30), st.integers(1, 8))
def test_filling_equals_the_plain_loop(left: Floats, size: int, step: int) -> None:
    steps = (
        step + np.arange(left.shape[1], dtype=np.float64)[None]
    )  # whole numbers: no rounding decides a tie
    found = fill_greedily(
        np.zeros(left.shape, dtype=np.int64), left, steps=steps, sizes=np.full(3, size)
    )
    for row, counts in zip(left, found, strict=True):
        remaining, expected = row.copy(), np.zeros(len(row), dtype=np.int64)
        for _ in range(size):
            chosen = int(remaining.argmin())
            expected[chosen] += 1
            remaining[chosen] += steps[0, chosen]
        np.testing.assert_array_equal(counts, expected)


def test_filling_changes_no_argument_and_passes_over_ruled_out_classes() -> None:
    counts, left = np.array([[1, 0, 0]]), np.array([[-1.0, 9.0, np.inf]])
    found = fill_greedily(counts, left, steps=np.array([[100.0]]), sizes=np.array([3]))
    assert found.tolist() == [[2, 1, 0]]
    assert counts.tolist() == [[1, 0, 0]]
    assert left.tolist() == [[-1.0, 9.0, np.inf]]


def test_ranks_put_equal_scores_in_the_order_of_classes() -> None:
    assert ranks(np.array([[2.0, -1.0, 2.0, 0.0]])).tolist() == [[2, 0, 3, 1]]
