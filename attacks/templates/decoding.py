"""From a message's normal equations to label counts: least squares, or a posterior."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np

from gradguard.attacks.rounding import Floats, Ints, round_to_batch
from gradguard.attacks.templates.posterior import Prior, posterior_counts, posterior_tails
from gradguard.attacks.templates.simplex_regression import solve_counts


class Decoder(Protocol):
    """Answers ``B g = sum_c n_c T_c + noise`` for the counts ``n``, given normal equations."""

    def decode(self, a: Floats, b: Floats, batch_size: int) -> Ints:
        """Counts that sum to ``batch_size``, shape ``(messages, classes)``."""
        ...

    def estimate(self, a: Floats, b: Floats, batch_size: int) -> Floats:
        """The counts before they are made whole: least squares, or the posterior mean."""
        ...


@dataclass(frozen=True)
class LeastSquares:
    """The nearest non-negative counts, rounded; see :func:`solve_counts` for the settings."""

    _: KW_ONLY
    ridge: float
    free: bool

    def decode(self, a: Floats, b: Floats, batch_size: int) -> Ints:
        return round_to_batch(self.estimate(a, b, batch_size), batch_size)

    def estimate(self, a: Floats, b: Floats, batch_size: int) -> Floats:
        sizes = np.full(len(b), batch_size, dtype=np.int64)
        return solve_counts(a, b, sizes, free=self.free, ridge=self.ridge)


@dataclass(frozen=True, eq=False)
class Posterior:
    """The best guess under a posterior over the generator's batches.

    Args:
        prior: Batches that the generator drew.
        temperature: How much to flatten the likelihood; see :func:`posterior_counts`.
        extended: Whether the least-squares answer counts as possible although it was not drawn.
            If not, a template that is wrong cannot lead outside of what the generator makes.
    """

    prior: Prior
    temperature: float
    _: KW_ONLY
    extended: bool

    def decode(self, a: Floats, b: Floats, batch_size: int) -> Ints:
        return posterior_counts(
            a,
            b,
            prior=self.prior,
            likely=self._likely(a, b, batch_size),
            temperature=self.temperature,
        )

    def estimate(self, a: Floats, b: Floats, batch_size: int) -> Floats:
        tails = posterior_tails(
            a,
            b,
            prior=self.prior,
            likely=self._likely(a, b, batch_size),
            temperature=self.temperature,
        )
        mean: Floats = tails.sum(axis=2, dtype=np.float64)
        return mean

    def _likely(self, a: Floats, b: Floats, batch_size: int) -> Ints | None:
        if not self.extended:
            return None
        return LeastSquares(ridge=1e-6, free=False).decode(a, b, batch_size)
