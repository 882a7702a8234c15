"""Gaussian differential privacy: the exact trade-off of Gaussian noise, without subsampling.

Releases with noise multipliers ``z_1, ..., z_T`` compose to ``mu = sqrt(sum 1 / z_t**2)``, exactly.

Borja Balle and Yu-Xiang Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018,
arXiv:1805.06530. Jinshuo Dong, Aaron Roth and Weijie J. Su, "Gaussian Differential Privacy", 2019,
arXiv:1905.02383.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

# Beyond it, epsilon is some 10**11 and double precision no longer holds what is subtracted.
_MOST_MU = 1e6


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The smallest delta for which a mu-GDP mechanism is (epsilon, delta)-DP.

    Args:
        mu: Sensitivity over standard deviation; at least 0, may be infinite.
        epsilon: Any real number.

    >>> round(gaussian_delta(1.0, 4.377178), 8)
    1e-05
    """
    if not mu >= 0 or math.isnan(epsilon):
        raise ValueError(f"expected mu of at least 0 and a number epsilon, got {mu!r}, {epsilon!r}")
    if mu == 0:
        return max(0.0, -math.expm1(epsilon))
    if math.isinf(mu):
        return 1.0
    # In logarithms: exp(epsilon) overflows where the tail that it multiplies underflows.
    first = math.exp(log_ndtr(mu / 2 - epsilon / mu))
    return max(0.0, first - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def gaussian_dp_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon of at least 0 for which a mu-GDP mechanism is (epsilon, delta)-DP.

    Infinite for a mu above a million, which is an upper value as well.

    >>> round(gaussian_dp_epsilon(1.0, 1e-5), 6), gaussian_dp_epsilon(0.0, 1e-5)
    (4.377178, 0.0)
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta!r}")
    if not mu >= 0:
        raise ValueError(f"mu must be at least 0, got {mu!r}")
    if mu > _MOST_MU:
        return math.inf
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2
    root: float = brentq(lambda e: gaussian_delta(mu, e) - delta, 0.0, high, xtol=1e-12)
    return root


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu at which a mu-GDP mechanism is (epsilon, delta)-DP: the analytic calibration.

    >>> round(gaussian_mu(4.377178, 1e-5), 6)
    1.0
    """
    if not (0 < delta < 1 and 0 <= epsilon < math.inf):
        raise ValueError(f"expected epsilon >= 0 and 0 < delta < 1, got {epsilon!r}, {delta!r}")
    high = 1.0
    while gaussian_delta(high, epsilon) < delta:
        high *= 2
    root: float = brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-14)
    return root
