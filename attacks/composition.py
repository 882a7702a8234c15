"""How many examples of each class a batch holds: the generators that label attacks are judged on.

======================  =========================================================================
``iid``                 labels independent and uniform over the classes (or from a label prior)
``skewed``              half one class, a quarter another, the rest uniform: the LLG paper's
``single``              every label the same
``dirichlet:A``         class proportions from a symmetric Dirichlet with concentration ``A``
======================  =========================================================================

``None``, an attacker who does not know the generator, is a broad mixture of all of these.
"""

from __future__ import annotations

import numpy as np

NAMES = ("iid", "skewed", "single", "dirichlet:A")


def draw_counts(
    composition: str | None,
    num_classes: int,
    batch_size: int,
    rng: np.random.Generator,
    prior: np.ndarray | None = None,
) -> np.ndarray:
    """Label counts of one batch, int64 of shape ``(classes,)``, summing to ``batch_size``.

    Args:
        composition: One of :data:`NAMES`, or ``None`` for the mixture.
        prior: Class probabilities behind ``iid``; uniform when not given.

    Raises:
        ValueError: The composition is none of these, or its concentration is not positive.

    >>> draw_counts("skewed", 10, 8, np.random.default_rng(0)).max() >= 4
    np.True_
    """
    uniform = np.full(num_classes, 1.0 / num_classes)
    if composition is None:
        composition = _mixed(rng)
    if composition == "iid":
        return rng.multinomial(batch_size, uniform if prior is None else prior)
    if composition == "skewed":
        return _skewed(num_classes, batch_size, rng)
    if composition == "single":
        return np.bincount([rng.integers(num_classes)], minlength=num_classes) * batch_size
    concentration = parse_dirichlet(composition)
    proportions = rng.dirichlet(np.full(num_classes, concentration))
    # A small concentration underflows to all zeros once in a while: then one class takes all.
    if not np.isfinite(proportions).all():
        proportions = np.eye(num_classes)[rng.integers(num_classes)]
    return rng.multinomial(batch_size, proportions / proportions.sum())


def _skewed(num_classes: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    major, minor = rng.permutation(num_classes)[[0, -1]] if num_classes > 1 else (0, 0)
    counts = np.zeros(num_classes, dtype=np.int64)
    counts[major] += batch_size // 2
    counts[minor] += batch_size // 4
    rest = batch_size - int(counts.sum())
    return counts + rng.multinomial(rest, np.full(num_classes, 1.0 / num_classes))


def _mixed(rng: np.random.Generator) -> str:
    kind = rng.choice(["iid", "skewed", "single", "dirichlet"], p=[0.15, 0.25, 0.05, 0.55])
    if kind == "dirichlet":
        return f"dirichlet:{np.exp(rng.uniform(np.log(0.05), np.log(20.0))):.4g}"
    return str(kind)


def parse_dirichlet(composition: str) -> float:
    """The concentration in ``"dirichlet:A"``; anything else is an unknown composition."""
    name, _, value = composition.partition(":")
    try:
        concentration = float(value)
    except ValueError:
        concentration = float("nan")
    if name != "dirichlet" or not 0 < concentration < float("inf"):
        raise ValueError(
            f"composition must be one of {', '.join(NAMES)} with a positive A, got {composition!r}"
        )
    return concentration
