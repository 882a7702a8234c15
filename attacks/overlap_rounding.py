"""Whole counts for the highest expected overlap, when it is known how estimates err.

Rounding estimates to the nearest whole counts answers the likely batch. What is scored is the
overlap ``sum_c min(guess_c, n_c)``, and as ``min(g, n) = sum_(k <= g) [n >= k]`` the guess with the
highest expected overlap takes the ``B`` largest of all ``P(n_c >= k)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradguard.attacks.rounding import Floats, Ints

NEIGHBOURS = 100
CELLS = 2**22  # probabilities (messages * classes * batch) held at a time


@dataclass(frozen=True, eq=False)
class OverlapRounding:
    """``P(n_c >= k)`` given an estimated share, from the nearest of known estimates.

    Neighbours are taken among the estimates of all classes, so a few hundred messages are enough.

    Args:
        estimates: Known estimates of shares, ascending, shape ``(points,)``.
        at_least: How many of the first ``i`` points have a count of ``k + 1`` or more, int32 of
            shape ``(points + 1, batch)``.
    """

    estimates: Floats
    at_least: npt.NDArray[np.int32]

    @classmethod
    def fit(cls, shares: np.ndarray, counts: np.ndarray) -> OverlapRounding:
        """From estimated shares and true counts, both ``(messages, classes)``, of one batch size.

        The estimates must come from messages that had no part in fitting the estimator: else
        their errors are too small.
        """
        order = np.argsort(shares, axis=None, kind="stable")
        truth, size = counts.ravel()[order], int(counts[0].sum())
        reached = truth[:, None] >= np.arange(1, size + 1)
        sums = np.zeros((len(truth) + 1, size), dtype=np.int32)
        np.cumsum(reached, axis=0, out=sums[1:])
        return cls(shares.ravel()[order].astype(np.float64), sums)

    def counts(self, shares: np.ndarray) -> Ints:
        """The guess with the highest expected overlap, int64 ``(messages, classes)``.

        Rows are non-negative and sum to the batch size.

        >>> known = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
        >>> rounding = OverlapRounding.fit(known, np.array([[2, 0], [2, 0], [0, 2], [0, 2]]))
        >>> rounding.counts(np.array([[0.85, 0.15]]))
        array([[2, 0]])
        """
        rows = max(1, CELLS // (shares.shape[1] * self.at_least.shape[1]))
        parts = [self._counts(shares[i : i + rows]) for i in range(0, len(shares), rows)]
        joined: Ints = np.concatenate(parts)
        return joined

    def _counts(self, shares: np.ndarray) -> Ints:
        near = min(NEIGHBOURS, max(1, len(self.estimates) // 4))
        position = np.searchsorted(self.estimates, shares)
        low = np.clip(position - near // 2, 0, len(self.estimates) - near)
        chances = (self.at_least[low + near] - self.at_least[low]) / near
        classes, size = shares.shape[1], chances.shape[2]
        # Equal chances go to the larger estimate, and then to the smaller k: one more of a class
        # is never taken before the one below it.
        ranked = chances + 1e-6 * shares[:, :, None] - 1e-9 * np.arange(size)
        flat = ranked.reshape(len(shares), -1)
        best = np.argpartition(-flat, size - 1, axis=1)[:, :size] // size
        found = (best[:, :, None] == np.arange(classes)).sum(axis=1)
        return np.asarray(found, dtype=np.int64)
