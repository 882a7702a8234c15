"""Intervals for few recorded messages, some of which share their truth."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gradguard.evaluation.metrics import RESAMPLES, Interval, Resampler, advantage


@dataclass(frozen=True, eq=False)
class Clustered:
    """95 % intervals of a mean over messages, where messages of one cluster count as one draw.

    A bootstrap over clusters, its deviations widened by ``sqrt(n / (n - 1))`` and by Student's t
    over the normal quantile: from two clusters nearly nothing is known, and the interval says so.
    Where all scores are the same, resampling knows no spread at all: then the exact interval of
    "n of n were so" is taken, and anything is thought possible for the rest. From one cluster
    nothing follows.

    Args:
        clusters: The cluster of every message, in order.
        seed: Of the resampling.
        among: Of how many intervals all are to hold at once (Bonferroni): each is wider then.

    >>> Clustered(["a", "a"], seed=0).rate_ci(np.array([0.5, 1.0]))
    (0.0, 1.0)
    """

    clusters: Sequence[Hashable]
    seed: int
    among: int = 1

    @property
    def number(self) -> int:
        """How many clusters there are."""
        return len(set(self.clusters))

    @property
    def _tail(self) -> float:
        """What may lie beyond either end."""
        return 0.025 / self.among

    def rate_ci(self, scores: np.ndarray) -> Interval:
        """Interval of a mean score; scores are in [0, 1], shape ``(messages,)``."""
        if self.number == 1:
            return 0.0, 1.0
        low, high = self._resampler().rate_ci(scores)
        surely, possibly = self._exact_ends(scores)
        return min(low, surely), max(high, possibly)

    def advantage_ci(self, scores: np.ndarray, blind: np.ndarray) -> Interval:
        """Interval of the advantage of ``scores`` over ``blind`` on the same messages.

        Where the blind guess was right throughout, an attacker had nothing to show: it ends at 1.
        """
        base = float(blind.mean())
        least = min(advantage(0.0, base), 0.0)
        if self.number == 1:
            return least, 1.0
        low, high = self._resampler().advantage_ci(scores, blind)
        surely, possibly = self._exact_ends(scores)
        high = max(high, advantage(possibly, base)) if base < 1 else 1.0
        return max(min(low, advantage(surely, base)), least), high

    def _exact_ends(self, scores: np.ndarray) -> Interval:
        """Of scores that are all the same; 1 and 0, which widen nothing, for others."""
        score, share = float(scores[0]), self._tail ** (1 / self.number)
        if not bool((scores == score).all()):
            return 1.0, 0.0
        return score * share, 1.0 - (1.0 - score) * share

    def _resampler(self) -> Resampler:
        place = {cluster: i for i, cluster in enumerate(dict.fromkeys(self.clusters))}
        index, number = np.array([place[cluster] for cluster in self.clusters]), len(place)
        rng = np.random.default_rng(self.seed)
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)[:, index]
        widen = math.sqrt(number / (number - 1))
        # The quantiles are those of 95 %: far out in the tail resamples are too few.
        widen *= float(stats.t.ppf(1 - self._tail, number - 1) / stats.norm.ppf(0.975))
        return Resampler(drawn / drawn.sum(axis=1, keepdims=True), widen)
