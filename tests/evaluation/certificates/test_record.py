from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from gradguard.evaluation.certificates.record import (
    class_presence_bound,
    epsilon_delta_bound,
    gaussian_epsilon,
    group_bound,
    noise_for_bound,
    per_record_bound,
    renyi_bound,
)


def _gaussian_renyi(order: float, *, noise: float) -> float:
    return order / (2 * noise**2)


priors = st.floats(1e-3, 0.999)
noises = st.floats(0.05, 50)
counts = st.integers(1, 1000)

# Computed independently with scipy, and for the tighter rows confirmed by simulation: a
# likelihood-ratio attacker's success on 200,000 draws lies at or below each of them.
SINGLE = {
    (2, 0.5): 0.977250, (2, 1.0): 0.841345, (2, 2.0): 0.691462, (2, 4.0): 0.598706,
    (10, 0.5): 0.763760, (10, 1.0): 0.389144, (10, 2.0): 0.217239, (10, 4.0): 0.151141,
    (10, 10.0): 0.118692, (100, 0.5): 0.372081, (100, 2.0): 0.033899,
}  # fmt: skip
COMPOSED = {
    (1.0, 10): 0.969995, (2.0, 10): 0.617754, (4.0, 10): 0.311720, (10.0, 10): 0.167191,
    (4.0, 100): 0.888473, (10.0, 100): 0.389144,
}  # fmt: skip
EPSILON = {
    0.5: (9.997256, 24.381611), 1.0: (4.377178, 9.997256), 2.0: (1.993091, 4.377178),
    4.0: (0.926342, 1.993091), 10.0: (0.340669, 0.725522),
}  # fmt: skip


@pytest.mark.parametrize(("case", "expected"), SINGLE.items(), ids=str)
def test_the_bound_of_one_release_is_golden(case: tuple[int, float], expected: float) -> None:
    classes, noise = case
    assert per_record_bound(1 / classes, noise) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("case", "expected"), COMPOSED.items(), ids=str)
def test_the_bound_of_many_releases_is_golden(case: tuple[float, int], expected: float) -> None:
    noise, releases = case
    assert per_record_bound(0.1, noise, releases) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("noise", "expected"), EPSILON.items(), ids=str)
def test_epsilon_of_both_adjacencies_is_golden(noise: float, expected: tuple[float, float]) -> None:
    found = (
        gaussian_epsilon(noise, 1e-5),
        gaussian_epsilon(noise, 1e-5, adjacency="replace-one"),
    )
    assert found == pytest.approx(expected, abs=1e-6)
    assert gaussian_epsilon(2 * noise, 1e-5, 4) == pytest.approx(expected[0], abs=1e-6)


def test_the_bound_from_epsilon_and_delta_is_golden_and_far_looser() -> None:
    expected = {0.5: 0.999959, 1: 0.988695, 2: 0.733828, 4: 0.252535, 10: 0.140599}
    for noise, value in expected.items():
        found = epsilon_delta_bound(0.1, gaussian_epsilon(noise, 1e-5), 1e-5)
        assert found == pytest.approx(value, abs=1e-6)
        assert found > 1.15 * per_record_bound(0.1, noise)


def test_the_bound_from_renyi_divergences_is_golden() -> None:
    expected = {0.5: 0.989404, 1: 0.518602, 2: 0.258050, 4: 0.165739}
    for noise, value in expected.items():
        found = renyi_bound(0.1, partial(_gaussian_renyi, noise=noise))
        assert found == pytest.approx(value, abs=1e-5)


def test_noise_for_a_bound_is_golden() -> None:
    expected = {0.11: 18.1741, 0.12: 9.3840, 0.15: 4.0797, 0.2: 2.2731, 0.5: 0.7803}
    for bound, noise in expected.items():
        assert noise_for_bound(0.1, bound) == pytest.approx(noise, abs=1e-4)


def test_class_presence_is_golden() -> None:
    expected = {0.5: (0.841345, 0.977250), 1.0: (0.691462, 0.841345),
                2.0: (0.598706, 0.691462), 4.0: (0.549738, 0.598706)}  # fmt: skip
    for noise, (removed, swapped) in expected.items():
        assert class_presence_bound(noise) == pytest.approx(removed, abs=1e-6)
        assert class_presence_bound(noise, swapped=True) == pytest.approx(swapped, abs=1e-6)
        assert class_presence_bound(2 * noise, records=2) == pytest.approx(removed, abs=1e-6)


def test_the_bound_is_reached_by_a_binary_label_and_nearly_by_a_simplex() -> None:
    # Exact success of the best attacker when the ten clipped gradients form a regular simplex.
    def simplex(classes: int, noise: float) -> float:
        shift = math.sqrt(classes / (classes - 1)) / noise
        found = quad(lambda x: norm.pdf(x - shift) * norm.cdf(x) ** (classes - 1), -10, 15)
        return float(found[0])

    assert simplex(2, 1.0) == pytest.approx(per_record_bound(0.5, 1.0), abs=1e-7)
    assert simplex(10, 1.0) == pytest.approx(0.358274, abs=1e-6)
    # A radius taken by mistake at half of what it is would already be exceeded.
    assert per_record_bound(0.1, 2.0) < simplex(10, 1.0) < per_record_bound(0.1, 1.0)


@given(prior=priors, noise=noises, releases=counts, more=st.floats(1.001, 10))
def test_the_bound_falls_with_noise_and_rises_with_releases_and_prior(
    prior: float, noise: float, releases: int, more: float
) -> None:
    bound = per_record_bound(prior, noise, releases)
    assert prior <= bound <= 1
    assert per_record_bound(prior, noise * more, releases) <= bound
    assert per_record_bound(prior, noise, releases + 1) >= bound
    assert per_record_bound(min(1.0, prior * more), noise, releases) >= bound


@given(prior=priors, noise=st.floats(0.2, 50), delta=st.floats(1e-9, 0.1))
def test_a_bound_from_epsilon_alone_or_from_renyi_is_never_below_the_mechanisms(
    prior: float, noise: float, delta: float
) -> None:
    bound = per_record_bound(prior, noise) - 1e-12
    assert epsilon_delta_bound(prior, gaussian_epsilon(noise, delta), delta) >= bound
    assert renyi_bound(prior, lambda order: order / (2 * noise**2)) >= bound


@given(prior=st.floats(1e-3, 0.9), releases=counts, noise=st.floats(0.5, 50))
def test_noise_for_a_bound_inverts_the_bound(prior: float, releases: int, noise: float) -> None:
    bound = per_record_bound(prior, noise, releases)
    if prior < bound < 1 - 1e-9:
        assert noise_for_bound(prior, bound, releases) == pytest.approx(noise, rel=1e-4)


@given(prior=priors, noise=noises, releases=counts, records=st.integers(2, 64))
def test_a_group_of_one_is_a_record_and_larger_groups_are_bounded_less(
    prior: float, noise: float, releases: int, records: int
) -> None:
    alone = per_record_bound(prior, noise, releases)
    assert group_bound(prior, 1, noise, releases) == alone
    assert group_bound(prior, records, noise, releases) >= alone


def test_no_noise_bounds_nothing_and_endless_noise_leaves_the_prior() -> None:
    for rate in (1.0, 0.1):
        assert per_record_bound(0.1, 0.0, 3, rate) == 1
        assert per_record_bound(0.1, math.inf, 3, rate) == pytest.approx(0.1, abs=1e-15)
    assert gaussian_epsilon(0.0, 1e-5) == math.inf
    assert gaussian_epsilon(math.inf, 1e-5) == 0
    assert noise_for_bound(0.1, 1.0) == 0
    assert group_bound(0.1, 8, 0.0) == class_presence_bound(0.0) == 1
    assert class_presence_bound(math.inf) == 0.5
    assert per_record_bound(1.0, 1.0) == group_bound(1.0, 8, math.inf) == 1
    assert renyi_bound(0.1, lambda order: math.inf) == 1


@pytest.mark.parametrize("prior", [0.0, -0.1, 1.1, math.nan, True, "0.1"])
def test_a_prior_that_is_no_probability_is_refused(prior: float) -> None:
    calls: tuple[Callable[[], float], ...] = (
        lambda: per_record_bound(prior, 1.0),
        lambda: group_bound(prior, 2, 1.0),
        lambda: noise_for_bound(prior, 0.5),
        lambda: epsilon_delta_bound(prior, 1.0, 1e-5),
        lambda: renyi_bound(prior, lambda order: order),
    )
    for call in calls:
        with pytest.raises(ValueError, match="prior must be the probability"):
            call()


@pytest.mark.parametrize("noise", [-1.0, math.nan, True, None])
def test_noise_that_is_none_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier must be a number of at least 0"):
        per_record_bound(0.1, noise)
    with pytest.raises(ValueError, match="noise_multiplier"):
        gaussian_epsilon(noise, 1e-5)


def test_other_unusable_inputs_are_refused_with_what_was_expected() -> None:
    for releases in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="releases must be a whole number"):
            per_record_bound(0.1, 1.0, releases)  # type: ignore[arg-type]
    for rate in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="sample_rate must be the probability"):
            per_record_bound(0.1, 1.0, 1, rate)
    with pytest.raises(ValueError, match="records must be a whole number"):
        group_bound(0.1, 0, 1.0)
    with pytest.raises(ValueError, match="records must be a whole number"):
        class_presence_bound(1.0, records=0)
    with pytest.raises(ValueError, match="adjacency must be one of add-remove, replace-one"):
        gaussian_epsilon(1.0, 1e-5, adjacency="zero-out")
    for bound in (0.1, 0.05, 1.1, math.nan):
        with pytest.raises(ValueError, match="bound must be above the prior"):
            noise_for_bound(0.1, bound)
    for epsilon, delta in ((-1.0, 0.1), (math.nan, 0.1), (1.0, 1.1)):
        with pytest.raises(ValueError, match="expected an epsilon of at least 0"):
            epsilon_delta_bound(0.1, epsilon, delta)


def test_a_numpy_number_is_a_number() -> None:
    assert per_record_bound(float(np.float64(0.1)), np.float64(1.0)) == per_record_bound(0.1, 1.0)
