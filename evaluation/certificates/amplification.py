"""Per-record bounds where records take part by secret coins: privacy amplification (R3).

With Poisson sampling the server does not know whether the record was in the batch at all. The
bound is the least of ``prior * exp(e) + delta(e)`` over *all* real ``e``, negative ones included,
where ``delta`` compares the law with the record to the law without it; the opposite direction
gives smaller numbers and no bound. ``delta`` comes from the discretised privacy-loss distribution
of Opacus, with the two error terms of its proof added, so that the result is an upper value.

Sivakanth Gopi, Yin Tat Lee and Lukas Wutschitz, "Numerical Composition of Differential Privacy",
2021, arXiv:2106.02848.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import binom

_Floats = npt.NDArray[np.float64]
_COARSE, _FINE = 0.05, 1e-3
"""Errors in the privacy loss: of a first look that tells the size of the grid, and aimed at."""

_POINTS = 2**21
_DELTA_ERROR = 1e-7


_LEAST_NOISE = 0.25


@lru_cache(maxsize=256)  # a study asks again for every row of a defence
def amplified_bound(
    prior: float, noise_multiplier: float, releases: int, sample_rate: float
) -> float:
    """An upper value of the subsampled per-record bound, within 0.2 % where noise is not little.

    Guarantees:

    - never below the true bound, up to the rounding of double precision, which is added;
    - exact for a single release.

    Args:
        noise_multiplier: Above 0 and finite.
        sample_rate: Strictly between 0 and 1.

    >>> round(amplified_bound(0.1, 1.0, 10, 0.1), 2), round(amplified_bound(0.1, 1.0, 1, 0.1), 6)
    (0.2, 0.128914)
    """
    found = [revealed_coins_bound(prior, noise_multiplier, releases, sample_rate)]
    # Where noise is little the grid is huge, and Opacus returns masses that are not a number.
    if releases > 1 and noise_multiplier >= _LEAST_NOISE:
        found += _from_losses(prior, (noise_multiplier, sample_rate, releases))
    return min(found)


def revealed_coins_bound(
    prior: float, noise_multiplier: float, releases: int, sample_rate: float
) -> float:
    """The bound against a server that is told in which releases the record took part.

    That server can only do better, so the mean of the plain bound over the coins is an upper
    value. It is exact for one release: the likelihood ratio rises with one coordinate, and the
    best event is the same half-space with the record in the batch or not.

    >>> round(revealed_coins_bound(0.5, 1.0, 1, 0.1), 6)
    0.534134
    """
    taken = np.arange(releases + 1)
    chances = binom.pmf(taken, releases, sample_rate)
    plain = ndtr(ndtri(prior) + np.sqrt(taken) / noise_multiplier)
    # Rounding may lose some of the chances: what is missing counts as fully disclosed.
    return min(1.0, float(chances @ plain) + max(0.0, 1.0 - float(chances.sum())))


def _from_losses(prior: float, history: tuple[float, float, int]) -> list[float]:
    """Upper values from the privacy-loss distribution; none where it cannot be computed."""
    coarse = _loss_distribution(history, _COARSE)
    if coarse is None:
        return []
    # The grid's size is its range over its step, and the step follows the error.
    error = max(_FINE, _COARSE * len(coarse[0]) / _POINTS)
    fine = _loss_distribution(history, error) if error < _COARSE else None
    bounds = [_bound(prior, *coarse, error=_COARSE)]
    if fine is not None:
        bounds.append(_bound(prior, *fine, error=error))
    # The releases can be ignored: a "bound" below the prior is a numerical failure.
    return [bound for bound in bounds if bound >= prior]


def _loss_distribution(
    history: tuple[float, float, int], error: float
) -> tuple[_Floats, _Floats] | None:
    """Values and probabilities of the privacy loss, or ``None`` where Opacus gives up."""
    # Here, not at the top: loading Opacus takes seconds, and most certificates need none of it.
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [history]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            # Private, hence the pinned range of Opacus and the golden values in the tests.
            found = accountant._get_dprv(eps_error=error, delta_error=_DELTA_ERROR)
    except (RuntimeError, ValueError, OverflowError, ZeroDivisionError, MemoryError):
        # Known for little noise: "Discrete mean differs significantly from continuous mean."
        return None
    masses = np.asarray(found.pmf, dtype=np.float64)
    if not abs(masses.sum() - 1) < 1e-6:  # NaN as well
        return None
    return np.asarray(found.domain.ts, dtype=np.float64), masses


def _bound(prior: float, losses: _Floats, masses: _Floats, *, error: float) -> float:
    """``min over e of prior * exp(e) + delta(e)``, each delta with its errors added."""
    # Below 0 only by rounding; delta rises with every mass, so this does not lower it.
    lost = max(0.0, 1.0 - float(masses.sum()))  # by rounding; it may have been anywhere
    masses = np.maximum(masses, 0.0)
    with np.errstate(all="ignore"):
        above = np.cumsum(masses[::-1])[::-1]
        weighted = np.cumsum((masses * np.exp(-losses))[::-1])[::-1]
        delta = above - np.exp(losses) * weighted
        # A loss is within `error` of the grid's, except with probability `_DELTA_ERROR`.
        bounds = prior * np.exp(losses + error) + np.maximum(delta, 0.0)
    usable = bounds[np.isfinite(bounds)]
    rounding = 4 * len(masses) * float(np.finfo(np.float64).eps)
    least = float(usable.min()) if usable.size else 1.0
    return min(1.0, least + lost + _DELTA_ERROR + rounding)
