"""Bounds under Poisson sampling, against golden values and against a second accountant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.certificates.amplification import revealed_coins_bound
from gradguard.evaluation.certificates.record import per_record_bound

PRIORS = (0.5, 0.1, 0.01)
# dp-accounting 0.6, connect-the-dots, interval 1e-4; noise multiplier, sample rate, releases.
GOLDEN = {
    (1.0, 1.0, 1): (0.841345, 0.389144, 0.092362),
    (2.0, 1.0, 10): (0.943077, 0.617754, 0.228073),
    (1.0, 0.01, 1): (0.503414, 0.102891, 0.010824),
    (1.0, 0.01, 1000): (0.656874, 0.194202, 0.029139),
    (1.0, 0.1, 1): (0.534134, 0.128914, 0.018236),
    (1.0, 0.1, 10): (0.634167, 0.195298, 0.033988),
    (1.0, 0.1, 100): (0.869746, 0.469186, 0.146054),
}


@pytest.mark.parametrize(("case", "expected"), GOLDEN.items(), ids=str)
def test_the_amplified_bound_is_within_two_thousandths_of_golden_and_never_below(
    case: tuple[float, float, int], expected: tuple[float, float, float]
) -> None:
    noise, rate, releases = case
    for prior, value in zip(PRIORS, expected, strict=True):
        found = per_record_bound(prior, noise, releases, rate)
        assert value - 1e-6 <= found <= value * (1 + 2e-3) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [(1.0, 0.1, 10), (0.6, 0.05, 40), (4.0, 0.06, 300), (0.3, 0.01, 200), (2.0, 0.5, 20)]
)
def test_the_amplified_bound_agrees_with_a_second_accountant(
    case: tuple[float, float, int],
) -> None:
    accounting = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    noise, rate, releases = case

    def second(pessimistic: bool) -> tuple[float, ...]:
        loss = accounting.from_gaussian_mechanism(
            noise,
            sampling_prob=rate,
            value_discretization_interval=2e-4,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        ).self_compose(releases)
        epsilons = np.linspace(-8, 12, 8001)
        # With the record against without it; the public method takes the worse of both ways.
        deltas = np.array(loss._pmf_remove.get_delta_for_epsilon(epsilons))
        return tuple(float((prior * np.exp(epsilons) + deltas).min()) for prior in PRIORS)

    for prior, low, high in zip(PRIORS, second(False), second(True), strict=True):
        found = per_record_bound(prior, noise, releases, rate)
        assert low <= found
        assert high * (1 - 1e-6) <= found <= high * (1 + 2e-3)


@given(prior=st.floats(1e-3, 0.999), noise=st.floats(0.05, 50), rate=st.floats(1e-3, 0.999))
def test_one_amplified_release_lies_between_prior_and_unamplified_bound(
    prior: float, noise: float, rate: float
) -> None:
    whole = per_record_bound(prior, noise)
    assert prior - 1e-12 <= per_record_bound(prior, noise, 1, rate) <= whole
    exact = (1 - rate) * prior + rate * whole
    assert per_record_bound(prior, noise, 1, rate) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0, 8.0])
def test_amplification_never_exceeds_the_bounds_that_need_no_accountant(
    noise: float, rate: float
) -> None:
    for releases in (2, 30):
        found = per_record_bound(0.1, noise, releases, rate)
        assert 0.1 <= found <= per_record_bound(0.1, noise, releases)
        assert found <= revealed_coins_bound(0.1, noise, releases, rate)


def test_sampling_always_is_not_sampling() -> None:
    for releases in (1, 7):
        assert per_record_bound(0.1, 2.0, releases, 1.0) == per_record_bound(0.1, 2.0, releases)
        nearly = per_record_bound(0.1, 2.0, releases, 1 - 1e-9)
        assert nearly == pytest.approx(per_record_bound(0.1, 2.0, releases), rel=2e-3)


def test_little_noise_falls_back_to_a_bound_that_holds() -> None:
    # Opacus' discretisation gives masses that are no numbers here; a record in one of the
    # hundred releases is all but disclosed, and is in one with probability 1 - 0.9 ** 100.
    found = per_record_bound(0.1, 0.05, 100, 0.1)
    assert 1 - 0.9**100 - 1e-6 <= found <= 1


def test_the_amplified_bound_holds_for_the_best_attacker_by_simulation() -> None:
    noise, rate, releases, draws = 1.0, 0.1, 10, 200_000
    rng = np.random.default_rng(0)

    def loss(x: np.ndarray) -> np.ndarray:
        shifted = np.exp((2 * x - 1) / (2 * noise**2))
        total: np.ndarray = np.log1p(rate * (shifted - 1)).sum(axis=1)
        return total

    without = loss(noise * rng.standard_normal((draws, releases)))
    coins = rng.random((draws, releases)) < rate
    inside = loss(coins + noise * rng.standard_normal((draws, releases)))
    for prior in (0.5, 0.1):
        power = float((inside > np.quantile(without, 1 - prior)).mean())
        bound = per_record_bound(prior, noise, releases, rate)
        assert power == pytest.approx(bound, abs=0.005)  # it is reached, and by no more than noise
