"""The Pareto front: what no other point beats on every count."""

from __future__ import annotations

import numpy as np


def nondominated(points: np.ndarray) -> np.ndarray:
    """Which points no other point dominates, where less is better in every column.

    One point dominates another if it is no greater in any column and less in at least one.

    Guarantees:

    - of points that are equal in every column, all are on the front or none is;
    - the answer goes with the points, in whatever order they come;
    - every point off the front is dominated by one on it.

    Args:
        points: Shape ``(points, columns)``. Infinity is a number like any other; NaN is not.

    Returns:
        Booleans, shape ``(points,)``.

    Raises:
        ValueError: The array has another number of dimensions, or holds NaN, which is neither
            better nor worse than anything.

    >>> nondominated(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 2.0], [1.0, 3.0]]))
    array([ True,  True, False,  True])
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"points must have two dimensions, got an array of shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError("points must not hold NaN: give a point without a value the worst one")
    if not values.shape[1]:  # without columns nothing is less than anything
        return np.ones(len(values), dtype=bool)
    # In dictionary order a point comes after every point that dominates it, so one pass that
    # compares with the front so far is enough.
    kept = np.zeros(len(values), dtype=bool)
    front = np.empty_like(values)
    size = 0
    for index in np.lexsort(values.T[::-1]):
        point, so_far = values[index], front[:size]
        beaten = (so_far <= point).all(axis=1) & (so_far < point).any(axis=1)
        if not beaten.any():
            kept[index] = True
            front[size] = point
            size += 1
    return kept
