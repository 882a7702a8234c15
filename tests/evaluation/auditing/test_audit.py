"""The auditing formulas: goldens, and that they hold as often as they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from gradguard.dp.gaussian import gaussian_dp_epsilon
from gradguard.evaluation.auditing.audit import (
    clopper_pearson_upper,
    epsilon_lower_bound,
    mu_lower_bound,
    one_run_epsilon,
    one_run_p_value,
    trade_off_violated,
)


def test_the_golden_values_are_met() -> None:
    assert clopper_pearson_upper(5, 1000, 0.025) == pytest.approx(0.01162947, abs=1e-8)
    assert clopper_pearson_upper(0, 1000, 0.025) == pytest.approx(0.00368208, abs=1e-8)
    assert epsilon_lower_bound(5, 1000, 200, 1000, 1e-5, 0.05) == pytest.approx(4.197811, abs=1e-6)
    mu = mu_lower_bound(5, 1000, 200, 1000, 0.05)
    assert mu == pytest.approx(3.020709, abs=1e-6)
    assert gaussian_dp_epsilon(mu, 1e-5) == pytest.approx(16.824718, abs=1e-5)


def test_the_golden_values_of_the_one_run_audit_are_met() -> None:
    assert one_run_p_value(1000, 100, 90, 1.0, 1e-5) == pytest.approx(8.4128856e-4, rel=1e-7)
    assert one_run_p_value(1000, 100, 90, 1.6, 1e-5) == pytest.approx(0.041369642, abs=1e-8)
    assert one_run_epsilon(1000, 100, 90, 1e-5, 0.05) == pytest.approx(1.626143, abs=1e-6)
    assert one_run_epsilon(1000, 1000, 600, 1e-5, 0.05) == pytest.approx(0.297227, abs=1e-6)


@given(st.integers(1, 300), st.data(), st.floats(1e-4, 0.5))
def test_the_upper_end_is_where_so_few_hits_have_probability_alpha(
    n: int, data: st.DataObject, alpha: float
) -> None:
    k = data.draw(st.integers(0, n - 1))
    upper = clopper_pearson_upper(k, n, alpha)
    assert binom.cdf(k, n, upper) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("mu", [0.25, 1.0, 3.0])
def test_mu_lower_bound_exceeds_mu_no_more_often_than_alpha(mu: float) -> None:
    rng = np.random.default_rng(0)
    rate = float(ndtr(-mu / 2))
    counts = rng.binomial(2000, rate, (1000, 2))
    above = [mu_lower_bound(fp, 2000, fn, 2000, 0.05) > mu for fp, fn in counts]
    assert np.mean(above) <= 0.05
    # The check has power: without intervals the estimate exceeds mu every other time.
    plain = ndtri(1 - counts[:, 0] / 2000) - ndtri(counts[:, 1] / 2000)
    assert np.mean(plain > mu) > 0.3


def test_a_fair_coin_refutes_nothing() -> None:
    assert mu_lower_bound(50, 100, 50, 100, 0.05) == 0.0
    assert epsilon_lower_bound(50, 100, 50, 100, 1e-5, 0.05) == 0.0
    assert one_run_epsilon(100, 100, 50, 1e-5, 0.05) == 0.0
    assert one_run_epsilon(100, 10, 0, 1e-5, 0.05) == 0.0


def test_always_wrong_refutes_nothing() -> None:
    assert mu_lower_bound(9, 9, 9, 9, 0.05) == 0.0
    assert epsilon_lower_bound(9, 9, 9, 9, 0.0, 0.05) == 0.0


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0.05, 6))
def test_the_gaussian_curve_is_refuted_exactly_where_mu_lower_bound_exceeds_it(
    fp: int, fn: int, mu: float
) -> None:
    bound = mu_lower_bound(fp, 100, fn, 100, 0.05)

    def curve(rate: float) -> float:
        return float(ndtr(ndtri(1 - rate) - mu))

    if not math.isclose(bound, mu, abs_tol=1e-9):
        refuted = trade_off_violated(fp, 100, fn, 100, 0.05, trade_off=curve)
        assert refuted == (bound > mu)


def test_more_correct_guesses_give_a_larger_epsilon() -> None:
    found = [one_run_epsilon(1000, 200, v, 1e-5, 0.05) for v in range(100, 201, 10)]
    assert found == sorted(found)
    assert found[-1] > 3


BAD: list[Callable[[], object]] = [
    lambda: clopper_pearson_upper(5, 4, 0.05),
    lambda: clopper_pearson_upper(0, 0, 0.05),
    lambda: clopper_pearson_upper(1, 4, math.nan),
    lambda: epsilon_lower_bound(0, 9, 0, 9, math.nan, 0.05),
    lambda: epsilon_lower_bound(0, 9, 0, 9, 1e-5, 0.0),
    lambda: mu_lower_bound(-1, 9, 0, 9, 0.05),
    lambda: one_run_epsilon(10, 20, 5, 1e-5, 0.05),
    lambda: one_run_epsilon(10, 5, 6, 1e-5, 0.05),
    lambda: one_run_epsilon(10, 5, 4, 1e-5, 1.0),
    lambda: one_run_p_value(10, 5, 4, -1.0, 1e-5),
    lambda: trade_off_violated(0, 9, 0, 9, 0.05, trade_off=lambda rate: math.nan),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_impossible_counts_and_levels_are_refused(case: int) -> None:
    with pytest.raises(ValueError, match=r"expected|must be|trade-off"):
        BAD[case]()
