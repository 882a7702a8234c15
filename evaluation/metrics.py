"""Success rates and their intervals: how much of a batch's labels an attacker got."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

Interval = tuple[float, float]
"""Lower and upper end of a two-sided 95 % interval."""

RESAMPLES = 2000


def success(guessed: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Share of each batch's labels that a guess of the counts gets right.

    The multiset overlap ``sum_c min(guessed_c, true_c) / B``. Dividing by the batch rather than
    by what was guessed, a guess of too few labels is not rewarded.

    Args:
        guessed: Counts, shape ``(batches, classes)``.
        true: Counts, shape ``(batches, classes)``.

    Returns:
        Shape ``(batches,)``, in [0, 1].

    >>> success(np.array([[4, 4, 0]]), np.array([[6, 1, 1]]))
    array([0.625])
    """
    return np.asarray(np.minimum(guessed, true).sum(axis=1) / true.sum(axis=1))


def advantage(rate: float, blind: float) -> float:
    """How far above a blind guess, where 1 is every label and 0 is nothing learned.

    Not clipped: a value below 0 says that the attack does worse than no attack. Where a blind
    guess is always right there is nothing to learn, and the advantage is 0.

    >>> advantage(0.8, 0.6), advantage(1.0, 1.0)
    (0.5000000000000001, 0.0)
    """
    return (rate - blind) / (1.0 - blind) if blind < 1.0 else 0.0


@dataclass(frozen=True, eq=False)
class Resampler:
    """Hierarchical bootstrap over model seeds and, inside each, over batches.

    Every estimate made with one resampler uses the same draws, so a difference between two
    attackers, or between an attacker and the blind guess, is a paired one.

    Not guaranteed: exactly 95 % with few seeds. The deviations are widened by
    ``sqrt(seeds / (seeds - 1))``, which makes the spread between seeds unbiased. In simulations
    with three seeds the interval then held the truth in 99 % of cases where models do not differ
    and in 85 % where they differ a lot (96 % and 80 % without it); with ten seeds, in 93 %.

    Args:
        weights: Shape ``(resamples, seeds * batches)``; rows sum to 1.
        widen: What deviations from the estimate are multiplied by.
    """

    weights: np.ndarray
    widen: float

    @classmethod
    def draw(cls, *, seeds: int, batches: int, seed: int, resamples: int = RESAMPLES) -> Resampler:
        """Resampling weights for ``seeds`` models with ``batches`` batches each."""
        rng = np.random.default_rng(seed)
        chosen = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        weights = np.empty((resamples, seeds, batches))
        for model in range(seeds):
            # A model that is drawn twice has its batches drawn twice, independently.
            draws = chosen[:, model] * batches
            weights[:, model] = rng.multinomial(draws, np.full(batches, 1 / batches))
        flat = weights.reshape(resamples, seeds * batches) / (seeds * batches)
        return cls(flat, math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0)

    def rate_ci(self, scores: np.ndarray) -> Interval:
        """Interval of a mean score.

        Args:
            scores: Shape ``(seeds, batches)``, in [0, 1].
        """
        means = self.weights @ scores.ravel()
        return self._interval(means, float(scores.mean()), 0.0)

    def advantage_ci(self, scores: np.ndarray, blind: np.ndarray) -> Interval:
        """Interval of the advantage, resampling ``scores`` and ``blind`` together."""
        rate, base = self.weights @ scores.ravel(), self.weights @ blind.ravel()
        gain = (rate - base) / np.maximum(1.0 - base, 1e-12)
        estimate = advantage(float(scores.mean()), float(blind.mean()))
        # A blind guess that is always right in a resample leaves nothing to gain there.
        return self._interval(np.where(base < 1.0, gain, 0.0), estimate, -math.inf)

    def _interval(self, values: np.ndarray, estimate: float, lowest: float) -> Interval:
        wide = estimate + (values - estimate) * self.widen
        low, high = np.quantile(wide, [0.025, 0.975])
        return max(float(low), lowest), min(float(high), 1.0)


def t_interval(values: np.ndarray) -> Interval | None:
    """95 % t-interval of a mean of shares, within [0, 1]; ``None`` from a single value.

    >>> low, high = t_interval(np.array([0.90, 0.92, 0.94]))
    >>> round(low, 3), round(high, 3)
    (0.87, 0.97)
    """
    if len(values) < 2:
        return None
    centre = float(values.mean())
    spread = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread
    return max(centre - half, 0.0), min(centre + half, 1.0)
