"""What can be guessed without looking at the message. No attack below this has learned anything.

A success rate means nothing alone: among 10 classes, a constant answer recovers 79 % of the labels
of an i.i.d. batch of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import binom
from torch import Tensor

from gradguard.attacks.composition import draw_counts
from gradguard.attacks.forward import labels_array
from gradguard.attacks.messages import as_counts
from gradguard.attacks.rounding import Floats, Ints
from gradguard.attacks.threat import Knowledge, Observation, require


def greedy_constant_guess(tails: Floats, batch_size: int) -> tuple[Ints, float]:
    """The constant guess with the highest expected multiset overlap, and that overlap.

    The expected overlap is ``sum over c and m <= guess_c of P(n_c >= m)``. Each class's terms fall
    with ``m``, so that taking the ``batch_size`` largest is optimal and always takes a prefix.

    Guarantees:

    - no other guess that sums to ``batch_size`` has a higher expected overlap.

    Args:
        tails: ``tails[c, m - 1] = P(n_c >= m)``, shape ``(classes, batch)``, non-increasing in m.
        batch_size: Labels to guess.

    Returns:
        Counts ``(classes,)`` and the expected share of the batch that they recover. Equal
        probabilities go to the lower level first, which spreads ties evenly over the classes.

    >>> greedy_constant_guess(np.array([[0.9, 0.2], [0.5, 0.1]]), 2)
    (array([1, 1]), 0.7)
    """
    classes, levels = tails.shape
    if levels < batch_size or batch_size < 1:
        raise ValueError(f"expected tails up to the batch of {batch_size}, got {levels} levels")
    # Levels first, so that a stable sort breaks ties towards an even spread; the rounding makes
    # probabilities that differ in their last bits the ties that they are.
    flat = tails.T.reshape(-1)
    taken = np.argsort(-np.round(flat, 12), kind="stable")[:batch_size]
    guess = np.bincount(taken % classes, minlength=classes).astype(np.int64)
    return guess, float(flat[taken].sum() / batch_size)


def iid_tails(batch_size: int, label_prior: npt.ArrayLike) -> Floats:
    """``P(n_c >= m)`` for independent labels: exact binomial tails, ``(classes, batch)``.

    Args:
        label_prior: Class probabilities, shape ``(classes,)``, summing to 1.

    Raises:
        ValueError: The prior is not a distribution.
    """
    prior = np.asarray(label_prior, dtype=np.float64)
    if prior.ndim != 1 or not (prior >= 0).all() or not abs(prior.sum() - 1) < 1e-6:
        raise ValueError(f"label_prior must be probabilities that sum to 1, got {label_prior!r}")
    tails: Floats = binom.sf(np.arange(batch_size)[None, :], batch_size, prior[:, None])
    return tails


def sampled_tails(
    composition: str | None,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    draws: int = 4000,
    prior: Floats | None = None,
) -> Floats:
    """``P(n_c >= m)`` of a generator of batch compositions, by simulation.

    Args:
        composition: See :mod:`gradguard.attacks.composition`; ``None`` is the mixture.
        prior: Class probabilities behind ``iid``; uniform when not given. With a uniform prior
            every generator is symmetric in the classes, and their tails are pooled: that takes
            away most of the sampling error, and a guess that follows it.
    """
    rng = np.random.default_rng(seed)
    counts = np.stack(
        [draw_counts(composition, num_classes, batch_size, rng, prior) for _ in range(draws)]
    )
    levels = range(1, batch_size + 1)
    tails: Floats = np.stack([(counts >= m).mean(axis=0) for m in levels], axis=1)
    if prior is None:
        tails = np.tile(tails.mean(axis=0), (num_classes, 1))
    return tails


@dataclass(frozen=True)
class RandomGuess:
    """Labels drawn uniformly at random: the baseline of the LLG paper.

    It is *not* the best blind guess; measure advantages against :class:`BestConstant`.

    Guarantees:

    - the same knowledge and number of observations give the same guesses.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def fit(self, knowledge: Knowledge) -> FittedRandomGuess:
        return FittedRandomGuess(seed=knowledge.seed)


@dataclass(frozen=True)
class FittedRandomGuess:
    """Uniform guesses from a seed."""

    _: KW_ONLY
    seed: int

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        _not_empty(observations)
        rng = np.random.default_rng([self.seed % 2**64, 0x6A09E667])
        drawn = [
            rng.multinomial(o.batch_size, np.full(o.num_classes, 1 / o.num_classes))
            for o in observations
        ]
        return as_counts(np.stack(drawn))


@dataclass(frozen=True)
class BestConstant:
    """The constant answer that recovers most labels on average, knowing only the generator.

    Exact for ``"iid"``; for other generators from 4,000 simulated compositions. Where auxiliary
    data is given, its label frequencies are the prior behind ``"iid"`` if they differ from uniform
    by more than chance (a chi-square beyond its mean by four standard deviations).

    Guarantees:

    - for i.i.d. labels no constant answer does better on average;
    - the message is not read.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"num_classes", "batch_size"})

    def fit(self, knowledge: Knowledge) -> FittedBestConstant:
        require(knowledge, self)
        assert knowledge.num_classes is not None  # for the type checker; require has raised
        assert knowledge.batch_size is not None
        # Other generators are symmetric in the classes; a prior would only keep their tails apart.
        prior = _uneven_prior(knowledge) if knowledge.composition in ("iid", None) else None
        return FittedBestConstant(
            knowledge.composition,
            num_classes=knowledge.num_classes,
            batch_size=knowledge.batch_size,
            seed=knowledge.seed,
            prior=None if prior is None else tuple(prior.tolist()),
        )


@dataclass(frozen=True)
class FittedBestConstant:
    """One answer for every message of a batch size."""

    composition: str | None
    _: KW_ONLY
    num_classes: int
    batch_size: int
    seed: int
    prior: tuple[float, ...] | None = None

    def best(self, batch_size: int) -> tuple[Ints, float]:
        """The guess for batches of this size and its expected success rate ``b*``."""
        guess, expected = _best(self, batch_size)
        return np.array(guess, dtype=np.int64), expected

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        _not_empty(observations)
        wrong = {o.num_classes for o in observations} - {self.num_classes}
        if wrong:
            raise ValueError(f"fitted for {self.num_classes} classes, got {sorted(wrong)}")
        sizes = [o.batch_size for o in observations]
        guesses = {size: self.best(size)[0] for size in sorted(set(sizes))}
        return as_counts(np.stack([guesses[size] for size in sizes]))


def _not_empty(observations: Sequence[Observation]) -> None:
    if not observations:
        raise ValueError("expected at least one observation, got none")


def _uneven_prior(knowledge: Knowledge) -> Floats | None:
    """Label frequencies of the auxiliary data, or ``None`` where they may well be uniform."""
    if knowledge.auxiliary is None or knowledge.num_classes is None:
        return None
    labels = labels_array(knowledge.auxiliary[1], knowledge.num_classes)
    if labels.size == 0:
        return None
    classes = knowledge.num_classes
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    expected = labels.size / classes
    chi_square = float(((counts - expected) ** 2).sum() / expected)
    if chi_square <= classes - 1 + 4 * np.sqrt(2 * (classes - 1)):
        return None
    prior: Floats = counts / counts.sum()
    return prior


@lru_cache(maxsize=256)  # a study asks again for every defence and every set of batches
def _best(fitted: FittedBestConstant, batch_size: int) -> tuple[tuple[int, ...], float]:
    prior = None if fitted.prior is None else np.array(fitted.prior)
    if fitted.composition == "iid":
        flat = np.full(fitted.num_classes, 1 / fitted.num_classes)
        tails = iid_tails(batch_size, flat if prior is None else prior)
    else:
        tails = sampled_tails(
            fitted.composition,
            num_classes=fitted.num_classes,
            batch_size=batch_size,
            seed=fitted.seed % 2**64,
            prior=prior,
        )
    guess, expected = greedy_constant_guess(tails, batch_size)
    return tuple(guess.tolist()), expected
