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
import scipy.linalg

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


def fit_kernel_ridge(
    features: np.ndarray,
    targets: np.ndarray,
    held_out: np.ndarray,
    score: Callable[[np.ndarray], float],
    kernel: Kernel,
) -> KernelRidge:
    """Fit, with the strength that scores best on held-out messages.

    Args:
        features: ``(messages, features)``.
        targets: Label shares, ``(messages, classes)``.
        held_out: Features of messages that share no image with the others.
        score: Judges predictions for ``held_out``; higher is better.
        kernel: ``"linear"`` or ``"arc-cosine"``.
    """
    columns = screen(features, targets)
    kept = features[:, columns]  # in single precision if they come so; the solve is in double
    centre, spread = kept.mean(0), kept.std(0)
    # A nearly constant feature must not be blown up into noise of unit size.
    scale = np.maximum(spread, 1e-3 * spread.max() + 1e-12) * kept.dtype.type(len(columns) ** 0.5)
    support, intercept = (kept - centre) / scale, targets.mean(0)
    inside = _gram(support, support, kernel)
    outside = _gram((held_out[:, columns] - centre) / scale, support, kernel)
    damping = STRENGTHS * max(float(np.trace(inside)) / len(inside), 1e-12)
    solved = [_solve(inside, targets - intercept, d) for d in damping]
    silent = np.zeros(targets.shape)  # every answer is then the mean
    solutions = [weights for weights in solved if weights is not None] or [silent]
    scores = [score(outside @ weights + intercept) for weights in solutions]
    # Ties go to the strongest damping: it is the one that can be trusted further out.
    weights = solutions[len(scores) - 1 - int(np.argmax(scores[::-1]))]
    return KernelRidge(kernel, columns, centre, scale, support, weights, intercept)


def _solve(gram: np.ndarray, targets: np.ndarray, damping: float) -> np.ndarray | None:
    """The weights, or ``None`` where the damping is below the kernel's own rounding."""
    damped = gram.astype(np.float64)
    damped[np.diag_indices_from(damped)] += damping
    try:
        # An eigendecomposition would serve all strengths, but takes as long as 20 of these.
        factor = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:  # features in single precision along one dominant direction
        return None
    solution: np.ndarray = scipy.linalg.cho_solve(factor, targets, check_finite=False)
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
    product = product + 1.0
    norms = [np.sqrt((side**2).sum(1) + 1.0) for side in (left, right)]
    outer = np.outer(*norms)
    cosine = np.clip(product / outer, -1.0, 1.0)
    angle = np.arccos(cosine)
    curved: np.ndarray = outer * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
    return curved
