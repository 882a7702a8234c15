"""From a message's normal equations to label counts: least squares, or a posterior."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np

from gradguard.attacks.rounding import Floats, Ints, round_to_batch
from gradguard.attacks.templates.posterior import Prior, posterior_counts
from gradguard.attacks.templates.simplex_regression import solve_counts


class Decoder(Protocol):
    """Answers ``B g = sum_c n_c T_c + noise`` for the counts ``n``, given normal equations."""

    def decode(self, a: Floats, b: Floats, batch_size: int) -> Ints:
        """Counts that sum to ``batch_size``, shape ``(messages, classes)``."""
        ...


@dataclass(frozen=True)
class LeastSquares:
    """The nearest non-negative counts, rounded; see :func:`solve_counts` for the settings."""

    _: KW_ONLY
    ridge: float
    free: bool

    def decode(self, a: Floats, b: Floats, batch_size: int) -> Ints:
        sizes = np.full(len(b), batch_size, dtype=np.int64)
        return round_to_batch(
            solve_counts(a, b, sizes, free=self.free, ridge=self.ridge), batch_size
        )


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
        likely = LeastSquares(ridge=1e-6, free=False).decode(a, b, batch_size)
        return posterior_counts(
            a,
            b,
            prior=self.prior,
            likely=likely if self.extended else None,
            temperature=self.temperature,
        )
