"""Bayes' answer: weigh possible batches by likelihood, then guess for the highest overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gradguard.attacks.baselines import greedy_constant_guess
from gradguard.attacks.composition import draw_counts
from gradguard.attacks.rounding import Floats, Ints

# Messages weighed at a time, draws from the prior, and the numbers that their tails may take
# (draws * classes * batch, 4 bytes each): these bound the memory.
CHUNK = 16
DRAWS = 10_000
TAILS = 2**22

Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prior:
    """Label counts that a generator drew, each once.

    Args:
        counts: Distinct batches of one size, int64 of shape ``(batches, classes)``.
        log_weight: Logarithm of the share of draws that gave each, shape ``(batches,)``.
        rare: The logarithmic weight of a batch that was not drawn, that of half a draw.
    """

    counts: Ints
    log_weight: Floats
    rare: float


@lru_cache(maxsize=8)
def draw_prior(composition: str | None, batch_size: int, class_prior: tuple[float, ...]) -> Prior:
    """What a generator draws; the same for the same arguments, and remembered."""
    classes = len(class_prior)
    draws = int(np.clip(TAILS // (classes * batch_size), 500, DRAWS))
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [
            draw_counts(composition, classes, batch_size, rng, np.array(class_prior))
            for _ in range(draws)
        ]
    )
    counts, times = np.unique(drawn, axis=0, return_counts=True)
    return Prior(counts.astype(np.int64), np.log(times / draws), float(np.log(0.5 / draws)))


def posterior_counts(
    a: Floats, b: Floats, *, prior: Prior, likely: Ints | None, temperature: float
) -> Ints:
    """The counts with the highest posterior expected overlap, for each message.

    Batches of the prior are weighed by the Gaussian likelihood ``exp((n'b - n'An/2) / (B t))`` of
    normal equations, and the guess takes the ``B`` largest ``P(n_c >= m)``. Least squares would
    answer the likeliest counts instead, which under strong noise is a worse guess.

    A finite prior misses many batches, most of all large ones. So the least-squares answer is
    weighed along with it: where the message says much, it wins.

    Args:
        a: ``(messages or 1, classes, classes)``.
        b: ``(messages, classes)``.
        prior: Possible batches, all of one size ``B``.
        likely: A further possible batch for each message, shape ``(messages, classes)``, or none.
        temperature: 1 if the coordinates' errors are independent, more if they repeat each other.

    >>> prior = Prior(np.array([[2, 0], [1, 1], [0, 2]]), np.zeros(3), -1.0)
    >>> found = np.array([[1, 1]])
    >>> posterior_counts(
    ...     np.eye(2)[None], np.array([[2.0, 0.1]]), prior=prior, likely=found, temperature=0.1
    ... )
    array([[2, 0]])
    """
    tails = posterior_tails(a, b, prior=prior, likely=likely, temperature=temperature)
    size = tails.shape[2]
    return np.stack([greedy_constant_guess(one.astype(np.float64), size)[0] for one in tails])


def posterior_tails(
    a: Floats, b: Floats, *, prior: Prior, likely: Ints | None, temperature: float
) -> Singles:
    """``P(n_c >= m)`` for ``m = 1..B``, float32 of shape ``(messages, classes, B)``.

    Its sum over ``m`` is the posterior mean of the counts. Arguments as in
    :func:`posterior_counts`.
    """
    size = int(prior.counts[0].sum())
    reached = _reached(prior.counts, size).astype(np.float32)
    parts = []
    for start in range(0, len(b), CHUNK):
        part = slice(start, start + CHUNK)
        systems = a if len(a) == 1 else a[part]
        own = None if likely is None else likely[part]
        weights = _weights(systems, b[part], prior, own, size * temperature)
        tails = weights[:, : len(reached)] @ reached
        if own is not None:
            tails = tails + weights[:, -1:] * _reached(own, size)
        parts.append(tails.reshape(len(tails), -1, size))
    joined: Singles = np.concatenate(parts)
    return joined


def _weights(a: Floats, b: Floats, prior: Prior, likely: Ints | None, divisor: float) -> Singles:
    """Posterior probabilities of the prior's batches and, last, of the likely one."""
    draws = prior.counts.astype(np.float64)
    # Without a mask all messages share one system: (1, batches) is then enough.
    quadratic = ((draws @ a) * draws).sum(axis=2)
    log = (b @ draws.T - quadratic / 2) / divisor + prior.log_weight
    if likely is not None:
        own = likely.astype(np.float64)
        systems = np.broadcast_to(a, (len(b), *a.shape[1:]))
        own_log = (b * own).sum(axis=1) - np.einsum("nc,ncd,nd->n", own, systems, own) / 2
        log = np.column_stack([log, own_log / divisor + prior.rare])
    # Single precision once the largest is 0: what underflows has no weight anyway.
    weights = np.exp((log - log.max(axis=1, keepdims=True)).astype(np.float32))
    normalised: Singles = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _reached(counts: Ints, size: int) -> np.ndarray:
    """Whether ``n_c >= m``, shape ``(batches, classes * size)``."""
    reached: np.ndarray = counts[:, :, None] >= np.arange(1, size + 1)
    return reached.reshape(len(counts), -1)
