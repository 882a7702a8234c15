"""Kernel ridge regression from many features to label shares, with the arc-cosine kernel.

Source: Y. Cho and L. Saul, Kernel Methods for Deep Learning, NeurIPS 2009 (order-one kernel).
scikit-learn's ``KernelRidge`` has neither this kernel nor a path of strengths; here the kernel is
computed once for all strengths, and features are screened before they are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Kernel = Literal["linear", "arc-cosine"]

# Relative to the kernel's mean diagonal.
STRENGTHS = 10.0 ** np.arange(-4.0, 2.0)
SCREENED = 4096  # features kept: those most correlated with the targets
_COLUMNS_AT_A_TIME = 8192


@dataclass(frozen=True, eq=False)
class KernelRidge:
    """A fitted regression; build with :func:`fit_kernel_ridge`."""

    kernel: Kernel
    columns: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    support: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predicted shares ``(messages, classes)``; not yet on the simplex."""
        standard = (features[:, self.columns] - self.centre) / self.scale
        gram = _gram(standard, self.support, self.kernel)
        predicted: np.ndarray = gram @ self.weights + self.intercept
        return predicted


@dataclass(frozen=True, eq=False)
class _Solved:
    """What one strength of damping gives: weights, answers for held-out messages, their score."""

    weights: np.ndarray
    answers: np.ndarray
    score: float


def fit_kernel_ridge(
    features: np.ndarray,
    targets: np.ndarray,
    held_out: np.ndarray,
    score: Callable[[np.ndarray], float],
    kernel: Kernel,
) -> tuple[KernelRidge, np.ndarray]:
    """Fit, with a strength of which no neighbour scores better on held-out messages.

    Args:
        features: ``(messages, features)``.
        targets: Label shares, ``(messages, classes)``.
        held_out: Features of messages that share no image with the others.
        score: Judges predictions for ``held_out``; higher is better.
        kernel: ``"linear"`` or ``"arc-cosine"``.

    Returns:
        The regression, and what it predicts for ``held_out``, ``(messages, classes)``.
    """
    columns = screen(features, targets)
    kept = features[:, columns]  # in single precision if they come so; the solve is in double
    centre, spread = kept.mean(0), kept.std(0)
    # A nearly constant feature must not be blown up into noise of unit size.
    scale = np.maximum(spread, 1e-3 * spread.max() + 1e-12) * kept.dtype.type(len(columns) ** 0.5)
    support, intercept = (kept - centre) / scale, targets.mean(0)
    inside = _gram(support, support, kernel)
    outside = _gram((held_out[:, columns] - centre) / scale, support, kernel)
    unit = max(float(np.trace(inside)) / len(inside), 1e-12)

    def solved(strength: float) -> _Solved:
        weights = _solve(inside, targets - intercept, strength * unit)
        if weights is None:
            return _Solved(np.zeros(targets.shape), np.tile(intercept, (len(outside), 1)), -np.inf)
        answers = outside @ weights + intercept
        return _Solved(weights, answers, score(answers))

    best = _climbed(solved)
    ridge = KernelRidge(kernel, columns, centre, scale, support, best.weights, intercept)
    return ridge, best.answers


def _climbed(solved: Callable[[float], _Solved]) -> _Solved:
    """The best strength met on the way up from the middle: scores rise to one peak and fall.

    Ties go to the stronger damping: it is the one that can be trusted further out.
    """
    middle = len(STRENGTHS) // 2
    at, best = middle, solved(STRENGTHS[middle])
    for way in (1, -1):
        while 0 <= at + way < len(STRENGTHS):
            next_one = solved(STRENGTHS[at + way])
            if next_one.score < best.score or (way < 0 and next_one.score == best.score):
                break
            at, best = at + way, next_one
        if at != middle:
            break
    return best


def _solve(gram: np.ndarray, targets: np.ndarray, damping: float) -> np.ndarray | None:
    """The weights, or ``None`` where the damping is below the kernel's own rounding."""
    damped = torch.from_numpy(gram).double().clone()
    damped.diagonal().add_(damping)
    # An eigendecomposition would serve all strengths, but takes as long as eight of these, and
    # scipy's factorisation is half as fast as torch's.
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:  # features in single precision along one dominant direction
        return None
    solution: np.ndarray = torch.cholesky_solve(torch.from_numpy(targets).double(), factor).numpy()
    return solution


def screen(features: np.ndarray, targets: np.ndarray, most: int = SCREENED) -> np.ndarray:
    """Sorted columns of the features most correlated with the targets, at most ``most``."""
    width = features.shape[1]
    if width <= most:
        return np.arange(width)
    blocks = range(0, width, _COLUMNS_AT_A_TIME)  # no second copy of all features
    strength = np.concatenate(
        [correlation(features[:, low : low + _COLUMNS_AT_A_TIME], targets) for low in blocks]
    )
    return np.sort(np.argpartition(-strength, most)[:most])


def correlation(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Squared correlation of every column with the targets, summed over these; 0 if constant."""
    centred = (targets - targets.mean(0)).astype(np.float32)
    centred /= np.linalg.norm(centred, axis=0) + 1e-12
    block = features - features.mean(0)
    spread = np.linalg.norm(block, axis=0)
    strength = ((block.T @ centred) ** 2).sum(1) / (spread**2 + 1e-24)
    found: np.ndarray = np.where(spread > 0, strength, 0.0)
    return found


def _gram(left: np.ndarray, right: np.ndarray, kernel: Kernel) -> np.ndarray:
    product: np.ndarray = (left @ right.T).astype(np.float64)
    if kernel == "linear":
        return product
    # The added one is a constant feature: without it the kernel cannot see the distance from 0.
    product += 1.0
    norms = [np.sqrt(np.einsum("ij,ij->i", side, side) + 1.0) for side in (left, right)]
    outer = np.outer(*norms)
    cosine = np.clip(np.divide(product, outer, out=product), -1.0, 1.0, out=product)
    curved: np.ndarray = np.arccos(cosine)
    np.subtract(np.pi, curved, out=curved)
    curved *= cosine
    # The sine of the angle, without a second look at it.
    curved += np.sqrt(1.0 - cosine * cosine)
    curved *= outer
    curved /= np.pi
    return curved
