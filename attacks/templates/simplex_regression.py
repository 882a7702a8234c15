"""Weighted least squares for label counts: non-negative, with a known sum, one system a message."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from gradguard.attacks.rounding import Floats, Ints, project_to_simplex

# Weight of the sum's row against a system whose mean eigenvalue is 1.
SUM_WEIGHT = 100.0


def normal_equations(
    messages: np.ndarray, templates: np.ndarray, weights: np.ndarray, *, masked: bool
) -> tuple[Floats, Floats]:
    """``A`` and ``b`` of ``min over n of sum_p w_p (y_p - sum_c n_c T_cp)^2``, for each message.

    Args:
        messages: ``y``, shape ``(messages, coordinates)``.
        templates: ``T``, shape ``(classes, coordinates)``.
        weights: ``w``, non-negative, shape ``(coordinates,)``.
        masked: Leave out the coordinates where a message is zero.

    Returns:
        ``A`` of shape ``(messages, classes, classes)``, or ``(1, classes, classes)`` where all
        messages share it, and ``b`` of shape ``(messages, classes)``.
    """
    roots = np.sqrt(weights)
    whitened = templates * roots
    # A coordinate that is left out has y = 0, so that it drops out of b by itself.
    b = ((messages * roots) @ whitened.T).astype(np.float64)
    if not masked:
        return (whitened @ whitened.T).astype(np.float64)[None], b
    by_coordinate = np.ascontiguousarray(whitened.T)
    systems = []
    for message in messages:
        kept = by_coordinate[np.flatnonzero(message)]
        systems.append(kept.T @ kept)
    return np.stack(systems).astype(np.float64), b


def solve_counts(a: Floats, b: Floats, sizes: Ints, *, free: bool, ridge: float) -> Floats:
    """Estimates of the counts, non-negative and summing to the batch size.

    Args:
        a: ``(messages or 1, classes, classes)``, as :func:`normal_equations` returns it.
        b: ``(messages, classes)``.
        sizes: Batch sizes, ``(messages,)``.
        free: Fit without the sum and scale to it afterwards: right where the defence multiplies
            each message by an unknown number.
        ridge: Pull towards the even spread, relative to the mean eigenvalue; positive.
    """
    classes = b.shape[1]
    estimates = np.empty_like(b)
    factors = [_factor(one, ridge) for one in a]
    for i, (right, size) in enumerate(zip(b, sizes, strict=True)):
        root, inverse, unit = factors[i if len(factors) > 1 else 0]
        if unit == 0:  # no coordinate left: nothing was seen
            estimates[i] = size / classes
            continue
        # With a free scale the even spread of this size is no sensible centre; zero is.
        centre = 0.0 if free else ridge * size / classes
        target = inverse @ (right / unit + centre)
        if not free:
            root = np.vstack([root, np.full(classes, SUM_WEIGHT)])
            target = np.append(target, SUM_WEIGHT * size)
        found = _nnls(root, target)
        total = found.sum()
        if free:
            estimates[i] = found * (size / total) if total > 0 else size / classes
        else:
            estimates[i] = found
    return project_to_simplex(estimates, sizes)


def _factor(a: Floats, ridge: float) -> tuple[Floats, Floats, float]:
    """``R`` with ``R'R = A / unit + ridge``, its inverse's transpose, and the unit."""
    classes = len(a)
    unit = float(np.trace(a)) / classes
    if not unit > 0:
        return a, a, 0.0
    values, vectors = np.linalg.eigh(a / unit + ridge * np.eye(classes))
    roots = np.sqrt(np.maximum(values, ridge))
    return roots[:, None] * vectors.T, (vectors / roots).T, unit


def _nnls(matrix: Floats, target: Floats) -> Floats:
    try:
        found: Floats = nnls(matrix, target, maxiter=30 * matrix.shape[1])[0]
    except RuntimeError:  # did not converge: the clipped unconstrained solution is close enough
        found = np.maximum(np.linalg.lstsq(matrix, target, rcond=None)[0], 0.0)
    return found
