"""What a distinguisher looks at in a message, and which of it serves best.

No single statistic sees every mistake. The projection on the known difference of both sums is
the best one against Gaussian noise; a parameter without noise shows in exact equality with an
earlier message, a mask in its zeros, noise that two tensors share in a learned direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

Array = NDArray[np.float64]

LEARNED_LIMIT = 128
"""Coordinates above which no direction is learned: its covariance would cost more than it finds."""

_QUANTILES = np.linspace(0.02, 0.98, 25)


@dataclass(frozen=True, eq=False)
class Reader:
    """Turns messages, flattened, into named statistics.

    Args:
        difference: Clipped sum with the canary minus that without, shape ``(coordinates,)``.
        sizes: Coordinates of each tensor, in order.
        names: Names of the tensors.
        seen: One earlier message with the canary and one without, shape ``(2, coordinates)``.
        learned: A direction fitted to earlier messages, shape ``(coordinates,)``, or ``None``.
    """

    difference: Array
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    seen: Array
    learned: Array | None

    def labels(self) -> list[str]:
        """Names of the statistics, in the order of the columns of :meth:`read`."""
        whole = ["projection", "non-finite", *_kinds("message")]
        whole += ["learned direction"] if self.learned is not None else []
        return whole + [
            label for name in self.names for label in (f"projection of {name}", *_kinds(name))
        ]

    def read(self, messages: Array) -> Array:
        """Statistics of ``messages`` of shape ``(n, coordinates)``: ``(n, statistics)``."""
        finite = np.isfinite(messages)
        broken = (~finite).sum(axis=1).astype(float)
        messages = np.where(finite, messages, 0.0)
        columns = [messages @ self.difference, broken]
        columns += _shape(messages, self.seen)
        if self.learned is not None:
            columns.append(messages @ self.learned)
        start = 0
        for size in self.sizes:
            part = slice(start, start + size)
            columns.append(messages[:, part] @ self.difference[part])
            columns += _shape(messages[:, part], self.seen[:, part])
            start += size
        return np.column_stack(columns)


def _kinds(name: str) -> list[str]:
    return [f"{what} of {name}" for what in ("distance", "equality", "zeros", "norm")]


def _shape(part: Array, seen: Array) -> list[Array]:
    """Closer to which earlier message, equal to which in more places, how many zeros, how long."""
    with_canary, without = seen
    # |m - b|^2 - |m - a|^2 without the squares of m, in which a small difference would drown.
    closer = 2 * (part @ (with_canary - without))
    equal = (part == with_canary).sum(axis=1) - (part == without).sum(axis=1)
    return [
        closer,
        equal.astype(float),
        (part == 0).sum(axis=1).astype(float),
        np.linalg.norm(part, axis=1),
    ]


def learn_direction(with_canary: Array, without: Array) -> Array | None:
    """Fisher's linear discriminant, or ``None`` for more than ``LEARNED_LIMIT`` coordinates.

    The ridge is tiny on purpose: noise that cancels between coordinates leaves a direction of no
    variance at all, and that is the one to find.
    """
    if with_canary.shape[1] > LEARNED_LIMIT:
        return None
    both = np.nan_to_num(np.stack([with_canary, without]), nan=0.0, posinf=0.0, neginf=0.0)
    means = both.mean(axis=1)
    centred = (both - means[:, None]).reshape(-1, both.shape[2])
    covariance = centred.T @ centred / max(len(centred) - 2, 1)
    ridge = 1e-9 * (np.trace(covariance) / len(covariance)) + 1e-300
    inverse = covariance + ridge * np.eye(len(covariance))
    return np.asarray(np.linalg.solve(inverse, means[0] - means[1]))


@dataclass(frozen=True)
class Rule:
    """Calls a message one with the canary where ``sign * statistic > threshold``."""

    column: int
    name: str
    sign: int
    threshold: float

    def errors(self, values: Array, *, canary: bool) -> int:
        """How many of ``values`` of this rule's statistic are called wrongly."""
        called = int((self.sign * values > self.threshold).sum())
        return len(values) - called if canary else called


def choose_rule(labels: list[str], with_canary: Array, without: Array, alpha: float) -> Rule:
    """The rule that proves most on these messages, which must not be counted again.

    The projection cut in the middle is kept unless something else proves more although it is
    charged for being one of many: what is better by luck alone costs power on those counted.

    Args:
        with_canary: Statistics, shape ``(n, statistics)``.
        without: Likewise.
    """
    charged = alpha / (50 * len(labels))
    best = Rule(0, labels[0], 1, _middle(with_canary[:, 0], without[:, 0]))
    proven = _best_cut(with_canary[:, 0], without[:, 0], alpha, searched=False)[1]
    for column, name in enumerate(labels):
        for sign in (1, -1):
            ones, zeros = sign * with_canary[:, column], sign * without[:, column]
            cut, shown = _best_cut(ones, zeros, charged, searched=True)
            if shown > proven:
                best, proven = Rule(column, name, sign, cut), shown
    return best


def _middle(ones: Array, zeros: Array) -> float:
    return float(ones.mean() + zeros.mean()) / 2


def _best_cut(ones: Array, zeros: Array, alpha: float, *, searched: bool) -> tuple[float, float]:
    """The cut that proves most, and what it proves; the middle is best for Gaussian noise."""
    cuts = np.array([_middle(ones, zeros)])
    if searched:
        cuts = np.append(cuts, np.quantile(np.concatenate([ones, zeros]), _QUANTILES))
    shown = _proven(ones, zeros, cuts, alpha)
    at = int(shown.argmax())
    return float(cuts[at]), float(shown[at])


def _proven(ones: Array, zeros: Array, cuts: Array, alpha: float) -> Array:
    """``mu_lower_bound`` without its floor at zero, for every cut at once."""
    false_negatives = np.searchsorted(np.sort(ones), cuts, side="right")
    false_positives = len(zeros) - np.searchsorted(np.sort(zeros), cuts, side="right")

    def upper(count: NDArray[np.intp], of: int) -> Array:
        tail = betaincinv(count + 1, np.maximum(of - count, 1), 1 - alpha / 2)
        return np.where(count == of, 1 - 1e-12, tail)

    fp, fn = upper(false_positives, len(zeros)), upper(false_negatives, len(ones))
    return np.asarray(ndtri(1 - fp) - ndtri(fn))
