"""How much to believe whom: weights for many answers, fitted and compared out of fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from gradguard.attacks.learning.practice import ONE_OF_MANY, Practice, clearly_above, overlap
from gradguard.attacks.overlap_rounding import OverlapRounding
from gradguard.attacks.rounding import Ints, project_to_simplex, round_to_batch

SCARCE = 100  # judging images; with fewer, weights would be fitted to those very images
FOLDS = 2
CALIBRATED = 2**26  # messages * classes * batch; above, tables of 4 bytes each grow too large


@dataclass(frozen=True, eq=False)
class Stack:
    """Answers in, counts out.

    Args:
        weights: Non-negative, one per answer, shape ``(answers,)``.
        rounding: From shares to counts; ``None`` is the nearest whole counts.
        batch_size: What counts sum to.
    """

    weights: np.ndarray
    rounding: OverlapRounding | None
    batch_size: int

    def shares(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted sum of answers ``(messages, classes)``, each on the simplex, and back on it.

        Without the first projection one answer far outside would outvote all others.
        """
        pairs = zip(self.weights, answers, strict=True)
        parts = [weight * project_to_simplex(answer, 1.0) for weight, answer in pairs if weight]
        return project_to_simplex(np.sum(parts, axis=0), 1.0)

    def counts(self, answers: Sequence[np.ndarray]) -> Ints:
        """Label counts from answers ``(messages, classes)``."""
        return rounded(self.shares(answers), self.rounding, self.batch_size)


def rounded(shares: np.ndarray, rounding: OverlapRounding | None, batch_size: int) -> Ints:
    """Counts from shares, by the given rounding or to the nearest."""
    if rounding is None:
        return round_to_batch(shares * batch_size, batch_size)
    return rounding.counts(shares)


@dataclass(frozen=True, eq=False)
class _Option:
    """A way to answer, and what and how well it answers the judging messages, out of fold."""

    weights: np.ndarray
    shares: np.ndarray
    overlap: np.ndarray
    calibrated: bool


def choose_stack(done: Practice) -> Stack:
    """The stack, the best single answer or the blind guess, as :class:`Ensemble` says."""
    size = done.rehearsal.batch_size
    blind = np.tile(done.blind / size, (len(done.truth), 1))
    answers = [project_to_simplex(answer, 1.0) for answer in (*done.answers, blind)]
    singles = [
        _option(answer, np.eye(len(answers))[i], done.truth) for i, answer in enumerate(answers)
    ]
    best = max(singles, key=lambda option: float(option.overlap.mean()))
    errors = ONE_OF_MANY
    if sum(len(rows) for rows in done.rehearsal.judge_pool.by_class) >= SCARCE:
        shares = _out_of_fold(answers, done.truth)
        stacked = _option(shares, _weights(answers, done.truth), done.truth)
        if not clearly_above(best.overlap, stacked.overlap, errors=1.0):
            best, errors = stacked, 1.0
    if not clearly_above(best.overlap, singles[-1].overlap, errors=errors):
        best = singles[-1]
    rounding = OverlapRounding.fit(best.shares, done.truth) if best.calibrated else None
    return Stack(best.weights, rounding, size)


def _option(shares: np.ndarray, weights: np.ndarray, truth: np.ndarray) -> _Option:
    """With the rounding that does better; the calibrated one is judged on the other fold."""
    size = int(truth[0].sum())
    nearest = overlap(rounded(shares, None, size), truth)
    if truth.size * size > CALIBRATED:
        return _Option(weights, shares, nearest, False)
    fold = _folds(len(truth))
    calibrated = np.zeros(len(truth))
    for k in range(FOLDS):
        rounding = OverlapRounding.fit(shares[fold != k], truth[fold != k])
        calibrated[fold == k] = overlap(rounding.counts(shares[fold == k]), truth[fold == k])
    better = bool(calibrated.mean() > nearest.mean())
    return _Option(weights, shares, calibrated if better else nearest, better)


def _out_of_fold(answers: list[np.ndarray], truth: np.ndarray) -> np.ndarray:
    """What the stack answers to messages that had no part in its weights."""
    fold, size = _folds(len(truth)), int(truth[0].sum())
    shares = np.zeros(truth.shape)
    for k in range(FOLDS):
        weights = _weights([answer[fold != k] for answer in answers], truth[fold != k])
        stack = Stack(weights, None, size)
        shares[fold == k] = stack.shares([answer[fold == k] for answer in answers])
    return shares


def _weights(answers: list[np.ndarray], truth: np.ndarray) -> np.ndarray:
    """Non-negative least squares from answers to true shares."""
    matrix = np.stack([answer.ravel() for answer in answers], axis=1)
    weights: np.ndarray = nnls(matrix, (truth / truth[0].sum()).ravel())[0]
    # The last answer is the blind guess: what to say where all others are silent.
    return weights if weights.any() else np.eye(len(answers))[-1]


def _folds(messages: int) -> np.ndarray:
    fold: np.ndarray = np.arange(messages) % FOLDS
    return fold
