from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.metrics import Resampler, advantage, success, t_interval


def overlap_by_hand(guessed: list[int], true: list[int]) -> float:
    """Cross out labels one by one, as one would on paper."""
    left = [label for label, count in enumerate(true) for _ in range(count)]
    hits = 0
    for label, count in enumerate(guessed):
        for _ in range(count):
            if label in left:
                left.remove(label)
                hits += 1
    return hits / sum(true)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_success_is_the_multiset_overlap(pairs: list[tuple[int, int]]) -> None:
    guessed, true = [g for g, _ in pairs], [t for _, t in pairs]
    if sum(true):
        expected = overlap_by_hand(guessed, true)
        assert success(np.array([guessed]), np.array([true]))[0] == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 0.99))
def test_advantage_is_zero_at_blind_and_one_at_perfect(rate: float, blind: float) -> None:
    assert advantage(blind, blind) == 0
    assert advantage(1.0, blind) == pytest.approx(1.0)
    assert (advantage(rate, blind) < 0) == (rate < blind)


def test_nothing_is_gained_where_a_blind_guess_is_always_right() -> None:
    ones = np.ones((2, 5))
    assert advantage(1.0, 1.0) == 0.0
    resampler = Resampler.draw(seeds=2, batches=5, seed=0)
    assert resampler.advantage_ci(ones, ones) == (0.0, 0.0)


def test_bootstrap_weights_are_a_resample_of_seeds_and_batches() -> None:
    weights = Resampler.draw(seeds=3, batches=10, seed=0, resamples=500).weights
    assert weights.sum(axis=1) == pytest.approx(1.0)
    per_model = weights.reshape(500, 3, 10).sum(axis=2) * 3
    assert np.allclose(per_model, per_model.round())
    # Two levels: models themselves are left out of some resamples.
    assert (per_model == 0).any()


def coverage(narrowed: float, seeds: int = 4, batches: int = 30, repeats: int = 300) -> float:
    """Share of intervals that hold the true mean when models differ as well as batches."""
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(repeats):
        models = rng.normal(0.5, 0.05, (seeds, 1))
        scores = np.clip(models + rng.normal(0, 0.15, (seeds, batches)), 0, 1)
        found = Resampler.draw(seeds=seeds, batches=batches, seed=repeat, resamples=400)
        low, high = Resampler(found.weights, found.widen * narrowed).rate_ci(scores)
        hits += low <= 0.5 <= high
    return hits / repeats


@pytest.mark.slow
def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    assert coverage(narrowed=1.0) > 0.86
    # The check has power: intervals of half the width are found out.
    assert coverage(narrowed=0.5) < 0.75


def test_advantage_interval_is_paired_with_the_blind_guess() -> None:
    rng = np.random.default_rng(0)
    blind = rng.uniform(0.1, 0.5, (3, 50))
    # Always half of what blind leaves open: paired, there is no spread at all.
    scores = blind + 0.5 * (1 - blind)
    interval = Resampler.draw(seeds=3, batches=50, seed=0).advantage_ci(scores, blind)
    assert list(interval) == pytest.approx([0.5, 0.5])


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(0).uniform(size=(2, 9))
    intervals = {Resampler.draw(seeds=2, batches=9, seed=5).rate_ci(scores) for _ in range(2)}
    assert len(intervals) == 1


def test_t_interval_matches_the_textbook() -> None:
    # s = 0.1, n = 3 and t(0.975, 2) = 4.302653.
    half = 4.302653 * 0.1 / 3**0.5
    found = t_interval(np.array([0.4, 0.5, 0.6]))
    assert found is not None
    assert list(found) == pytest.approx([0.5 - half, 0.5 + half])


def test_one_seed_has_no_accuracy_interval() -> None:
    assert t_interval(np.array([0.9])) is None
