from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from gradguard.evaluation.certificates.record import (
    best_constant_asr,
    information_bound,
    multiset_bound,
)

SKEWED = [0.5, 0.25] + [0.03125] * 8
BLIND = {
    (1, 2): 0.5, (2, 2): 0.75, (4, 2): 0.8125, (8, 2): 0.863281, (32, 2): 0.930025,
    (128, 2): 0.964807, (1, 10): 0.1, (2, 10): 0.19, (4, 10): 0.3439, (8, 10): 0.569533,
    (32, 10): 0.788280, (128, 10): 0.894171, (256, 10): 0.925054, (8, 100): 0.077255,
    (32, 100): 0.275020, (128, 100): 0.645617,
}  # fmt: skip
MULTISET = {
    (8, 10, 2): 0.819533, (8, 10, 4): 0.694533, (8, 10, 8): 0.632033, (8, 10, 16): 0.600783,
    (32, 10, 4): 0.913280, (32, 10, 8): 0.850780, (32, 10, 16): 0.819530,
    (128, 10, 8): 0.956671, (128, 10, 16): 0.925421, (8, 2, 4): 0.961988, (8, 2, 8): 0.913019,
    (32, 100, 1): 0.775020, (32, 100, 2): 0.525020, (32, 100, 4): 0.400020,
    (32, 100, 8): 0.337520,
}  # fmt: skip

distributions = st.lists(st.floats(0.01, 1), min_size=1, max_size=8).map(
    lambda weights: np.array(weights) / np.sum(weights)
)


@pytest.mark.parametrize(("case", "expected"), BLIND.items(), ids=str)
def test_the_best_guess_without_looking_is_golden(case: tuple[int, int], expected: float) -> None:
    batch, classes = case
    found = best_constant_asr(batch, [1 / classes] * classes)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_best_guess_of_an_uneven_prior_is_golden() -> None:
    expected = {1: 0.5, 8: 0.708834, 32: 0.844304, 128: 0.919106}
    for batch, value in expected.items():
        assert best_constant_asr(batch, SKEWED) == pytest.approx(value, abs=1e-6)


@given(prior=distributions, batch=st.integers(1, 40))
def test_the_best_guess_is_never_below_a_random_guess(prior: np.ndarray, batch: int) -> None:
    random_guess = sum(
        float((binom.sf(np.arange(batch), batch, p) ** 2).sum()) / batch for p in prior
    )
    assert best_constant_asr(batch, prior) >= random_guess - 1e-9


@pytest.mark.parametrize(("case", "expected"), MULTISET.items(), ids=str)
def test_the_multiset_bound_is_golden(case: tuple[int, int, float], expected: float) -> None:
    batch, classes, noise = case
    found = multiset_bound(batch, [1 / classes] * classes, noise)
    assert found == pytest.approx(expected, abs=1e-6)


@given(
    prior=distributions,
    batch=st.integers(1, 40),
    noise=st.floats(0.05, 50),
    more=st.floats(1, 10),
    releases=st.integers(1, 100),
)
def test_the_multiset_bound_falls_with_noise_and_rises_with_releases(
    prior: np.ndarray, batch: int, noise: float, more: float, releases: int
) -> None:
    bound = multiset_bound(batch, prior, noise, releases)
    assert best_constant_asr(batch, prior) <= bound <= 1
    assert multiset_bound(batch, prior, noise * more, releases) <= bound
    assert multiset_bound(batch, prior, noise, releases + 1) >= bound


def test_no_noise_bounds_nothing_and_endless_noise_leaves_the_blind_guess() -> None:
    assert multiset_bound(8, [0.1] * 10, 0.0) == 1
    assert multiset_bound(8, [0.1] * 10, math.inf) == best_constant_asr(8, [0.1] * 10)
    assert multiset_bound(8, [1.0], 1.0) == 1


def test_the_information_bound_is_golden() -> None:
    exact_histogram = math.factorial(8) / 10**8  # eight different labels out of ten
    assert exact_histogram == pytest.approx(0.0004032, abs=1e-9)
    assert information_bound(exact_histogram, 8 / (2 * 4.0**2)) == pytest.approx(0.061502, abs=1e-6)
    assert information_bound(exact_histogram, 8 / (2 * 8.0**2)) == pytest.approx(0.020968, abs=1e-6)
    binary = math.comb(8, 4) / 2**8
    assert information_bound(binary, 8 / (2 * 4.0**2)) == pytest.approx(0.612235, abs=1e-6)


@given(prior=st.floats(1e-6, 0.99), information=st.floats(0, 20), more=st.floats(0, 1))
def test_the_information_bound_rises_with_information_from_the_prior(
    prior: float, information: float, more: float
) -> None:
    bound = information_bound(prior, information)
    assert prior - 1e-12 <= bound <= 1
    assert information_bound(prior, information + more) >= bound - 1e-12
    assert information_bound(prior, 0.0) == pytest.approx(prior, rel=1e-6)


def test_what_is_certain_beforehand_needs_no_information() -> None:
    assert information_bound(1.0, 0.0) == 1
    assert information_bound(0.5, math.log(2)) == 1


def test_unusable_inputs_are_refused_with_what_was_expected() -> None:
    for prior in ([0.5, 0.4], [1.5, -0.5], [[0.5, 0.5]], [math.nan, 1.0], []):
        with pytest.raises(ValueError, match="label_prior must be one probability per class"):
            multiset_bound(8, prior, 1.0)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        best_constant_asr(0, [0.5, 0.5])
    with pytest.raises(ValueError, match="information must be at least 0"):
        information_bound(0.5, math.nan)
    with pytest.raises(ValueError, match="prior must be"):
        information_bound(0.0, 1.0)
