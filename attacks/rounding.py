"""From real-valued scores to label counts that sum to the batch, row by row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def project_to_simplex(points: npt.ArrayLike, total: npt.ArrayLike) -> Floats:
    """The nearest points, in Euclidean distance, of ``{x >= 0, sum x = total}``.

    Guarantees:

    - rows are non-negative and sum to ``total`` up to rounding;
    - a row that is already there is unchanged up to rounding;
    - the order of a row's entries is kept.

    Args:
        points: Finite, shape ``(rows, classes)``.
        total: Non-negative; one number, or one per row.

    Raises:
        ValueError: A point is not finite, a total is negative, or shapes do not fit.

    >>> project_to_simplex([[2.0, -1.0, 0.0]], 1)
    array([[1., 0., 0.]])
    """
    values, totals = _checked(points, total)
    # A common shift changes nothing, and sums of scores around 1e12 would lose the digits.
    values = values - values.max(axis=1, keepdims=True)
    descending: Floats = -np.sort(-values, axis=1)
    # The largest support whose smallest member stays positive after the common shift.
    excess = descending.cumsum(axis=1) - totals
    sizes = np.arange(1, values.shape[1] + 1)
    inside = (descending * sizes > excess) | (sizes == 1)
    support = inside.sum(axis=1, keepdims=True)
    shift = np.take_along_axis(excess, support - 1, axis=1) / support
    projected: Floats = np.maximum(values - shift, 0.0)
    return projected


def largest_remainder(shares: npt.ArrayLike, total: npt.ArrayLike) -> Ints:
    """Round shares that sum to ``total`` to integers that do: floors first, then the largest rest.

    Guarantees:

    - rows are non-negative integers and sum to ``total``;
    - each entry differs from its share by less than one;
    - equal remainders go to the lowest index, so that the result is reproducible.

    Args:
        shares: Non-negative, shape ``(rows, classes)``.
        total: A non-negative integer; one, or one per row.

    Raises:
        ValueError: A share is negative or not finite, or a row does not sum to its total.

    >>> largest_remainder([[1.5, 1.5, 1.0]], 4)
    array([[2, 1, 1]])
    """
    values, totals = _checked(shares, total)
    if (totals != np.rint(totals)).any():
        raise ValueError(f"totals must be integers, got {total!r}")
    off = np.abs(values.sum(axis=1, keepdims=True) - totals)
    if (values < 0).any() or not (off <= 1e-6 * np.maximum(totals, 1.0)).all():
        raise ValueError(
            "shares must be non-negative and sum to the total in every row; "
            "project_to_simplex makes them so"
        )
    # 2.9999999996 is a 3 that went through arithmetic; without this its floor would be 2.
    cleaned = np.round(values, 9)
    floors = np.floor(cleaned)
    short = np.rint(totals - floors.sum(axis=1, keepdims=True))
    order = np.argsort(-np.round(cleaned - floors, 9), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    counts: Ints = (floors + (ranks < short)).astype(np.int64)
    return counts


def round_to_batch(scores: npt.ArrayLike, batch_size: npt.ArrayLike) -> Ints:
    """Label counts from estimates of them: project to the simplex, then largest remainder.

    Args:
        scores: Finite estimates of the counts, shape ``(rows, classes)``.
        batch_size: What each row must sum to; one number, or one per row.

    >>> round_to_batch([[5.2, 3.1, -0.3]], 8)
    array([[5, 3, 0]])
    """
    return largest_remainder(project_to_simplex(scores, batch_size), batch_size)


def proportional(weights: npt.ArrayLike, batch_size: npt.ArrayLike) -> Ints:
    """Label counts proportional to non-negative weights; a row of zeros is spread evenly.

    >>> proportional([[3.0, 1.0], [0.0, 0.0]], 4)
    array([[3, 1],
           [2, 2]])
    """
    values, totals = _checked(weights, batch_size)
    if (values < 0).any():
        raise ValueError("weights must be non-negative")
    values = np.where(values.sum(axis=1, keepdims=True) > 0, values, 1.0)
    return round_to_batch(values / values.sum(axis=1, keepdims=True) * totals, batch_size)


def _checked(points: npt.ArrayLike, total: npt.ArrayLike) -> tuple[Floats, Floats]:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"expected shape (rows, classes), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("expected finite scores, got NaN or infinity: was the update diverging?")
    totals = np.asarray(total, dtype=np.float64)
    if totals.shape not in ((), (values.shape[0],)):
        raise ValueError(f"expected one total or {values.shape[0]}, got shape {totals.shape}")
    totals = np.broadcast_to(totals.reshape(-1, 1), (values.shape[0], 1))
    if not (totals >= 0).all():
        raise ValueError(f"totals must be non-negative, got {total!r}")
    return values, totals
