"""Rounding for the highest expected overlap, against an exhaustive search and its own laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.attacks.overlap_rounding import OverlapRounding
from gradguard.attacks.rounding import round_to_batch


def _noisy(messages: int, size: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = np.stack(
        [rng.multinomial(size, rng.dirichlet(np.ones(classes) * 0.3)) for _ in range(messages)]
    )
    noisy = np.clip(counts / size + rng.normal(0, 0.15, counts.shape), 0, None) + 1e-9
    return noisy / noisy.sum(1, keepdims=True), counts


@given(
    size=st.integers(1, 12),
    classes=st.integers(2, 7),
    messages=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_counts_are_whole_not_negative_and_sum_to_the_batch(
    size: int, classes: int, messages: int, seed: int
) -> None:
    shares, counts = _noisy(messages, size, classes, seed)
    found = OverlapRounding.fit(shares, counts).counts(shares)
    assert found.dtype == np.int64
    assert (found >= 0).all()
    assert (found.sum(1) == size).all()


def test_the_answer_is_the_best_of_all_guesses_under_the_estimated_chances() -> None:
    size, classes = 4, 3
    shares, counts = _noisy(400, size, classes, 0)
    rounding = OverlapRounding.fit(shares, counts)
    asked = shares[:20]
    near = 100
    for row, found in zip(asked, rounding.counts(asked), strict=True):
        position = np.searchsorted(rounding.estimates, row)
        low = np.clip(position - near // 2, 0, len(rounding.estimates) - near)
        chance = (rounding.at_least[low + near] - rounding.at_least[low]) / near

        def expected(guess: np.ndarray, chance: np.ndarray = chance) -> float:
            return float(sum(chance[c, :n].sum() for c, n in enumerate(guess)))

        every = [
            np.array(guess)
            for guess in itertools.product(range(size + 1), repeat=classes)
            if sum(guess) == size
        ]
        assert expected(found) == pytest.approx(max(expected(guess) for guess in every))


def test_it_beats_rounding_to_the_nearest_where_estimates_are_noisy() -> None:
    """A wrong sign in the ranking would fail this by far."""
    shares, counts = _noisy(3000, 8, 10, 1)
    rounding = OverlapRounding.fit(shares[:1000], counts[:1000])
    overlap = np.minimum(rounding.counts(shares[1000:]), counts[1000:]).sum(1) / 8
    nearest = np.minimum(round_to_batch(8 * shares[1000:], 8), counts[1000:]).sum(1) / 8
    gain = overlap - nearest
    assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))


def test_exact_estimates_are_rounded_exactly() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(3, [0.5, 0.3, 0.2], size=4000)
    found = OverlapRounding.fit(counts / 3, counts).counts(counts[:50] / 3)
    np.testing.assert_array_equal(found, counts[:50])


def test_many_messages_are_rounded_in_bounded_pieces_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares, counts = _noisy(50, 6, 4, 2)
    rounding = OverlapRounding.fit(shares, counts)
    at_once = rounding.counts(shares)
    monkeypatch.setattr("gradguard.attacks.overlap_rounding.CELLS", 40)
    np.testing.assert_array_equal(rounding.counts(shares), at_once)
