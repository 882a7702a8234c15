"""Intervals of few messages, some about the same labels: wide where little is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.observed.intervals import Clustered
from gradguard.evaluation.observed.rows import is_alarming

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.875, 1.0]), min_size=1, max_size=12)


@given(scores=SCORES, seed=st.integers(0, 5))
def test_an_interval_holds_its_estimate_and_stays_in_range(scores: list[float], seed: int) -> None:
    found = np.array(scores)
    blind = np.full(len(scores), 0.375)
    intervals = Clustered(list(range(len(scores))), seed)
    low, high = intervals.rate_ci(found)
    assert 0 <= low <= found.mean() + 1e-9
    assert found.mean() - 1e-9 <= high <= 1
    low, high = intervals.advantage_ci(found, blind)
    gain = (found.mean() - 0.375) / 0.625
    assert low - 1e-9 <= gain <= high + 1e-9
    assert high <= 1


def test_one_cluster_says_nothing_however_many_messages() -> None:
    intervals = Clustered(["same"] * 50, 0)
    assert intervals.rate_ci(np.ones(50)) == (0.0, 1.0)
    low, high = intervals.advantage_ci(np.ones(50), np.full(50, 0.5))
    assert (low, high) == (-1.0, 1.0)


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_equal_scores_of_few_messages_are_not_taken_for_certainty(score: float) -> None:
    for number, width in ((3, 0.7), (20, 0.16)):
        low, high = Clustered(list(range(number)), 0).rate_ci(np.full(number, score))
        assert high - low > width


@pytest.mark.parametrize("scores", [[1.0] * 8, [0.25, 0.5, 0.75, 1.0, 0.5, 0.5, 1.0, 0.75]])
def test_intervals_that_are_to_hold_at_once_are_wider(scores: list[float]) -> None:
    found, blind = np.array(scores), np.full(8, 0.25)
    alone, *more = (Clustered(list(range(8)), 0, among) for among in (1, 2, 20))
    low = alone.advantage_ci(found, blind)[0]
    for wider in more:
        assert wider.advantage_ci(found, blind)[0] < low
        low = wider.advantage_ci(found, blind)[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [6, 30])
def test_of_many_attacks_that_read_nothing_one_surely_above_chance_is_rare(number: int) -> None:
    rng, wrong = np.random.default_rng(0), 0
    for trial in range(200):
        blind = np.full(number, 0.5)
        scores = rng.binomial(8, rng.beta(4, 4, size=(10, number))) / 8
        intervals = Clustered(list(range(number)), trial, among=10)
        wrong += any(intervals.advantage_ci(found, blind)[0] > 0 for found in scores)
    assert wrong <= 0.05 * 200


def test_messages_about_the_same_labels_do_not_narrow_an_interval() -> None:
    scores = np.array([0.25, 0.5, 0.75, 1.0, 0.25, 0.75])
    once = Clustered(list("abcdef"), 0).rate_ci(scores)
    often = Clustered(list("abcdef") * 10, 0).rate_ci(np.tile(scores, 10))
    assert often == pytest.approx(once)
    believed = Clustered(list(range(60)), 0).rate_ci(np.tile(scores, 10))
    assert believed[1] - believed[0] < (once[1] - once[0]) / 2


def test_where_the_blind_guess_is_always_right_nothing_is_excluded() -> None:
    ones = np.ones(30)
    assert Clustered(list(range(30)), 0).advantage_ci(ones, ones)[1] == 1.0


@pytest.mark.parametrize(("number", "repeats"), [(4, 1), (10, 1), (10, 3)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(number: int, repeats: int) -> None:
    """Scores of a batch of 8, of clients that differ; each sends ``repeats`` times."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        shares = np.repeat(rng.beta(4, 2, size=number), repeats)
        scores = rng.binomial(8, shares) / 8
        clusters = np.repeat(np.arange(number), repeats).tolist()
        low, high = Clustered(clusters, trial).rate_ci(scores)
        held += low <= 4 / 6 <= high
    assert held >= 0.9 * 200


def test_an_alarm_is_rare_where_messages_are_like_simulated_ones() -> None:
    """The law behind it: of five in ``simulated + 1``, and of 1000 these are few."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        unlike = rng.binomial(100, rng.beta(5, 996))
        alarms += is_alarming(int(unlike), 100, 1000)
    assert alarms <= 0.06 * 500


def test_an_alarm_is_certain_where_all_messages_are_unlike() -> None:
    assert is_alarming(1, 1, 50)
    assert is_alarming(12, 12, 50)
    assert is_alarming(20, 30, 50)
    assert not is_alarming(0, 30, 50)


@pytest.mark.parametrize("simulated", [1, 20, 50, 100, 1000])
def test_no_number_of_simulated_messages_excuses_more_than_one_in_twenty(simulated: int) -> None:
    for messages in (1, 6, 20, 100, 1000):
        assert is_alarming(messages // 20 + 1, messages, simulated)
