"""From a set of present classes to label counts: even spreads and greedy ones."""

from __future__ import annotations

import numpy as np

from gradguard.attacks.rounding import Floats, Ints


def ranks(scores: Floats) -> Ints:
    """The rank of each score in its row, 0 for the smallest; equal scores go by class index."""
    order = np.argsort(scores, axis=1, kind="stable")
    places: Ints = np.argsort(order, axis=1, kind="stable")
    return places


def spread_over_set(scores: Floats, members: np.ndarray, sizes: Ints) -> Ints:
    """Each member of the set once, and the rest of the batch evenly over the set.

    Guarantees:

    - rows sum to the batch, and no class outside the set is named;
    - the lowest scores come first: they are kept where the set is larger than the batch, and get
      the odd examples where the batch does not divide evenly. Equal scores go by class index;
    - an empty set is replaced by the classes whose score is not positive, or by all classes.

    Args:
        scores: Lower is more surely present, shape ``(observations, classes)``.
        members: Which classes are in the set, boolean of the same shape.
        sizes: Batch sizes, shape ``(observations,)``.

    >>> scores = np.array([[-2.0, -3.0, 1.0]])
    >>> spread_over_set(scores, scores < 0, np.array([5]))
    array([[2, 3, 0]])
    """
    members = np.where(members.any(axis=1, keepdims=True), members, scores <= 0)
    members = np.where(members.any(axis=1, keepdims=True), members, True)
    places = ranks(np.where(members, scores, np.inf))
    named = np.minimum(members.sum(axis=1), sizes)[:, None]
    each, odd = np.divmod(sizes[:, None], named)
    counts: Ints = np.where(places < named, each + (places < odd), 0).astype(np.int64)
    return counts


def fill_greedily(counts: Ints, left: Floats, *, steps: Floats, sizes: Ints) -> Ints:
    """Until the batch is spent, one more of the class with the least left, which grows by a step.

    :func:`~gradguard.attacks.llg.greedy_counts` without its start, and with a step per class.

    Args:
        counts: Labels that are out already, shape ``(observations, classes)``.
        left: What is left to explain, negative where there is more; infinite rules a class out.
        steps: What one more example explains, positive or zero; broadcast to the same shape.
        sizes: Batch sizes, shape ``(observations,)``.

    >>> none, left = np.zeros((1, 3), dtype=np.int64), np.array([[-0.5, -0.25, 0.25]])
    >>> fill_greedily(none, left, steps=np.array([[0.25]]), sizes=np.array([3]))
    array([[2, 1, 0]])
    """
    counts, left = counts.copy(), left.copy()
    steps = np.broadcast_to(steps, left.shape)
    for _ in range(int((sizes - counts.sum(axis=1)).max(initial=0))):
        rows = np.flatnonzero(counts.sum(axis=1) < sizes)
        chosen = left[rows].argmin(axis=1)
        counts[rows, chosen] += 1
        left[rows, chosen] += steps[rows, chosen]
    return counts
