"""Auditing formulas: from what a distinguisher got right to a lower bound on the privacy loss.

A distinguisher says of a message whether the canary was in the batch. Its errors are counted:
false positives among ``negatives`` messages without the canary, false negatives among
``positives`` messages with it. Messages must be independent, and the rule that calls them fixed
before they were drawn; a threshold tuned on the counted messages voids every bound here.

A lower bound is never a proof of privacy: it says what this distinguisher with this canary found.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import betaincinv, ndtri
from scipy.stats import binom


def clopper_pearson_upper(k: int, n: int, alpha: float) -> float:
    """Upper end of the exact one-sided interval of a probability, from ``k`` hits in ``n`` trials.

    Guarantees:

    - whatever the true probability, it is above this with probability at most ``alpha``.

    Charles J. Clopper and Egon S. Pearson, "The Use of Confidence or Fiducial Limits Illustrated
    in the Case of the Binomial", 1934.

    >>> round(clopper_pearson_upper(0, 1000, 0.025), 8), clopper_pearson_upper(4, 4, 0.05)
    (0.00368208, 1.0)
    """
    if not 0 <= k <= n or not n >= 1:
        raise ValueError(f"expected 0 <= k <= n and n of at least 1, got k={k!r}, n={n!r}")
    _check_open("alpha", alpha)
    return 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - alpha))


def epsilon_lower_bound(
    false_positives: int,
    negatives: int,
    false_negatives: int,
    positives: int,
    delta: float,
    alpha: float,
) -> float:
    """A1: an epsilon below which the mechanism cannot be (epsilon, delta)-DP.

    ``max(0, ln((1 - delta - F) / N), ln((1 - delta - N) / F))`` with the upper ends ``F`` and
    ``N`` of both error rates at ``alpha / 2``.

    Guarantees:

    - for any mechanism that is (epsilon, delta)-DP the result exceeds epsilon with probability
      at most ``alpha``; nothing else is assumed.

    Not tight for Gaussian noise at one threshold: see :func:`mu_lower_bound`.

    Matthew Jagielski, Jonathan Ullman and Alina Oprea, "Auditing Differentially Private Machine
    Learning: How Private is Private SGD?", 2020, arXiv:2006.07709.

    >>> round(epsilon_lower_bound(5, 1000, 200, 1000, 1e-5, 0.05), 6)
    4.197811
    """
    _check_delta(delta)
    fp, fn = _error_rates(false_positives, negatives, false_negatives, positives, alpha)
    ratios = [(1 - delta - fp) / fn, (1 - delta - fn) / fp]
    return max(math.log(ratio) if ratio > 1 else 0.0 for ratio in ratios)


def mu_lower_bound(
    false_positives: int,
    negatives: int,
    false_negatives: int,
    positives: int,
    alpha: float,
) -> float:
    """A2: a mu below which the mechanism cannot be mu-Gaussian-DP.

    ``max(0, Phi^-1(1 - F) - Phi^-1(N))`` with ``F`` and ``N`` as in :func:`epsilon_lower_bound`.

    Guarantees:

    - for any mechanism that is mu-GDP the result exceeds mu with probability at most ``alpha``.

    It refutes claims of Gaussian DP: noise added to every batch in full, and whatever is made of
    it. Under Poisson sampling the claim is another curve: see :func:`trade_off_violated`.

    Milad Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023,
    arXiv:2302.07956.

    >>> round(mu_lower_bound(5, 1000, 200, 1000, 0.05), 6)
    3.020709
    """
    fp, fn = _error_rates(false_positives, negatives, false_negatives, positives, alpha)
    return max(0.0, float(ndtri(1 - fp) - ndtri(fn)))


def trade_off_violated(
    false_positives: int,
    negatives: int,
    false_negatives: int,
    positives: int,
    alpha: float,
    *,
    trade_off: Callable[[float], float],
) -> bool:
    """A3: whether the counts refute a claimed trade-off curve.

    Args:
        trade_off: From a false-positive rate to the smallest false-negative rate that the claim
            allows; decreasing.

    Guarantees:

    - a claim that holds is refuted with probability at most ``alpha``.

    Jinshuo Dong, Aaron Roth and Weijie J. Su, "Gaussian Differential Privacy", 2019,
    arXiv:1905.02383 (trade-off functions).

    >>> def perfect(rate: float) -> float:
    ...     return 1 - rate
    >>> trade_off_violated(5, 1000, 200, 1000, 0.05, trade_off=perfect)
    True
    """
    fp, fn = _error_rates(false_positives, negatives, false_negatives, positives, alpha)
    allowed = trade_off(fp)
    if not 0 <= allowed <= 1:
        raise ValueError(f"a trade-off curve maps to [0, 1], got {allowed!r} at {fp!r}")
    return fn < allowed


def one_run_p_value(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """The chance that (epsilon, delta)-DP allows so many correct guesses; an upper bound.

    >>> f"{one_run_p_value(1000, 100, 90, 1.0, 1e-5):.7e}"
    '8.4128856e-04'
    """
    if not 0 <= correct <= guesses <= canaries or not guesses >= 1:
        raise ValueError(
            "expected 0 <= correct <= guesses <= canaries and at least one guess, got "
            f"{correct!r}, {guesses!r}, {canaries!r}"
        )
    _check_delta(delta)
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon!r}")
    rate = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(correct - 1, guesses, rate))
    if not correct:
        return 1.0
    below = np.arange(1, correct + 1)
    mass = np.cumsum(binom.pmf(correct - below, guesses, rate))
    return min(1.0, beta + 2 * canaries * delta * float((mass / below).max()))


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """A4: a lower bound on epsilon from a single run with many canaries.

    Each canary is put into the batch by its own fair coin; of ``guesses`` canaries, chosen by
    the auditor after seeing the message, it is said whether they were in.

    Args:
        canaries: All canaries, guessed or not.
        guesses: Canaries that a guess was made for.
        correct: Guesses that were right.

    Guarantees:

    - for any mechanism that is (epsilon, delta)-DP under adding or removing one example the
      result exceeds epsilon with probability at most ``alpha``.

    Not tight: with one run much of a Gaussian mechanism's epsilon stays unseen.

    Thomas Steinke, Milad Nasr and Matthew Jagielski, "Privacy Auditing with One (1) Training
    Run", 2023, arXiv:2305.08846.

    >>> round(one_run_epsilon(1000, 100, 90, 1e-5, 0.05), 6)
    1.626143
    """
    _check_open("alpha", alpha)

    def refuted(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) <= alpha

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _error_rates(
    false_positives: int, negatives: int, false_negatives: int, positives: int, alpha: float
) -> tuple[float, float]:
    """Upper ends of both error rates, together right with probability ``1 - alpha``."""
    _check_open("alpha", alpha)
    return (
        clopper_pearson_upper(false_positives, negatives, alpha / 2),
        clopper_pearson_upper(false_negatives, positives, alpha / 2),
    )


def _check_open(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}")


def _check_delta(delta: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be at least 0 and below 1, got {delta!r}")
