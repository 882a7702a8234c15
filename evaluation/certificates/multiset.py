"""Upper bounds on attacks that name the labels of a whole batch, in any order.

The score is the multiset overlap ``sum_c min(guess_c, n_c) / B``. It matches guesses to records
after the truth is known, so that a bound on naming one given record's label does not bound it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr, xlog1py, xlogy

from gradguard.attacks.baselines import greedy_constant_guess, iid_tails
from gradguard.evaluation.certificates.inputs import (
    check_prior,
    check_whole,
    joint_mu,
    label_probabilities,
)


def best_constant_asr(batch_size: int, label_prior: npt.ArrayLike) -> float:
    """The share of labels that the best guess without looking gets right on average.

    Exact, for independent labels. It is far above the largest class probability in large
    batches, and an attack that does not exceed it has learned nothing.

    Args:
        batch_size: Labels in a batch.
        label_prior: Class probabilities, shape ``(classes,)``.

    Guarantees:

    - at least what a random guess gets.

    >>> round(best_constant_asr(32, [0.1] * 10), 6)
    0.78828
    """
    check_whole("batch_size", batch_size)
    tails = iid_tails(batch_size, label_probabilities(label_prior))
    return min(1.0, greedy_constant_guess(tails, batch_size)[1])


def multiset_bound(
    batch_size: int, label_prior: npt.ArrayLike, noise_multiplier: float, releases: int = 1
) -> float:
    """The highest expected multiset overlap of any attacker, for independent labels (M1).

    The best guess without looking, plus the lesser of ``sqrt(releases) / (2 z)`` (the information
    that one record's label leaves in the releases) and ``(1 - sum pi**2) (2 Phi(sqrt(releases) /
    z) - 1)`` (how far one changed label can move them). Labels are replaced one at a time by
    copies that the releases know nothing of; each replacement moves the score by ``1 / B`` at
    most, which is why the bound does not grow with the batch.

    Assumes that, given all else that the attacker knows, the labels are independent with
    ``label_prior``, and an expectation over labels and noise: it says nothing about one fixed
    batch. Sound, but two to five times looser than the best attack known.

    Args:
        releases: How many releases the whole batch takes part in.

    Guarantees:

    - never below the blind guess, and 1 without noise.

    >>> round(multiset_bound(8, [0.1] * 10, 4.0), 6)
    0.694533
    """
    prior = label_probabilities(label_prior)
    blind = best_constant_asr(batch_size, prior)
    mu = joint_mu(noise_multiplier, releases)
    if math.isinf(mu):
        return 1.0
    # A label that is certain cannot be changed; rounding must not make that less than nothing.
    uncertain = max(0.0, 1.0 - float(np.square(prior).sum()))
    gain = min(mu / 2, uncertain * (2 * float(ndtr(mu)) - 1))
    return min(1.0, blind + gain)


def information_bound(prior: float, information: float) -> float:
    """The highest probability of any event of prior probability ``prior`` (M2, Fano's way).

    The largest ``p`` whose divergence from ``prior``, both as biased coins, is at most the mutual
    information between the secret and the releases. With Gaussian noise that is at most
    ``releases / (2 z**2)`` per record whose label is independent of the others, and ``B**2`` times
    that for a batch of B whose labels depend on each other.

    Args:
        prior: The event's probability without looking, in (0, 1].
        information: Mutual information in nats, at least 0.

    >>> round(information_bound(0.0004032, 0.25), 6)
    0.061502
    """
    check_prior(prior)
    if not information >= 0:
        raise ValueError(f"information must be at least 0 nats, got {information!r}")
    if prior == 1 or information >= -math.log(prior):
        return 1.0
    root: float = brentq(
        lambda p: _divergence(p, prior) - information, prior, 1.0, xtol=1e-14, rtol=1e-14
    )
    return root


def _divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence between coins of bias ``p`` and ``q``, in nats."""
    first = xlogy(p, p) - xlogy(p, q)
    return float(first + xlog1py(1 - p, -p) - xlog1py(1 - p, -q))
