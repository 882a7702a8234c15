"""What Gaussian noise on clipped gradients guarantees against every attacker, known or not.

An attack gives a lower bound on what leaks; these are upper bounds. Throughout, a release is a sum
of per-record gradients, each clipped to the norm C, plus Gaussian noise with standard deviation
``noise_multiplier * C`` on every coordinate; whatever is computed from releases alone is covered.
``releases`` are those that the record takes part in; later ones may depend on earlier ones.

Most bounds rest on one step. Let ``P_y`` be the law of all that the server sees when the secret is
``y``, and ``Q`` a law that is the same for every ``y``. If no event of Q-probability ``k`` has
more than ``f(k)`` under any ``P_y``, with ``f`` concave, then a guess that is right with
probability ``prior`` under Q is right with at most ``f(prior)``. Q is the law with the record
removed, at distance C and not 2 C, and for Gaussian noise ``f(k) = Phi(Phi^-1(k) + mu)``.

Not covered by any of them: what is sent beside the releases without noise (losses, example
counts, BatchNorm statistics), a clipping norm chosen from the data, equal noise on two clients,
and the rounding of floating-point noise.

Jamie Hayes, Saeed Mahloujifar and Borja Balle, "Bounding Training Data Reconstruction in DP-SGD",
2023, arXiv:2302.07225. Borja Balle, Giovanni Cherubin and Jamie Hayes, "Reconstructing Training
Data with Informed Adversaries", 2022, arXiv:2201.04845.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

from gradguard.evaluation.certificates.amplification import amplified_bound
from gradguard.evaluation.certificates.inputs import check_prior, check_rate, check_whole, joint_mu
from gradguard.evaluation.certificates.multiset import best_constant_asr as best_constant_asr
from gradguard.evaluation.certificates.multiset import information_bound as information_bound
from gradguard.evaluation.certificates.multiset import multiset_bound as multiset_bound

LARGEST_MU = 1e6
"""Epsilon is about half its square, which double precision rounds too coarsely beyond."""

ADJACENCIES = ("add-remove", "replace-one")


def per_record_bound(
    prior: float, noise_multiplier: float, releases: int = 1, sample_rate: float = 1.0
) -> float:
    """The highest probability with which any attacker names one record's label (R1, R2, R3).

    Args:
        prior: How often the best guess without the releases is right, in (0, 1]: the largest
            class probability, or more if the attacker knows more about this record.
        noise_multiplier: Noise over clipping norm, at least 0, may be infinite.
        releases: How many releases the record takes part in; with a sample rate below 1, how
            many it could have taken part in.
        sample_rate: Below 1 only if the record takes part in each release by an independent coin
            of this probability (Poisson sampling) that the attacker does not see. A measured
            success on records that *are* in the batch is to be compared with 1.0.

    Guarantees:

    - it falls with noise and rises with releases and prior;
    - it holds against an attacker who knows all other records, the record's input, the model,
      and the earlier releases, provided that ``prior`` allows for that knowledge;
    - subsampled, it is never above the bound without subsampling.

    Not covered: several records at once (:func:`multiset_bound`); labels that depend on each
    other, where an attacker learns one from all (:func:`group_bound`); shuffled batches as if
    they were Poisson batches.

    >>> round(per_record_bound(0.1, 1.0), 6), round(per_record_bound(0.5, 1.0), 6)
    (0.389144, 0.841345)
    """
    check_prior(prior)
    check_rate(sample_rate)
    bound = _blow_up(prior, joint_mu(noise_multiplier, releases))
    # Not `bound == 1`: that may be rounding, where amplification still says a lot.
    if sample_rate == 1 or prior == 1 or noise_multiplier in (0, math.inf):
        return bound
    return min(bound, amplified_bound(prior, noise_multiplier, releases, sample_rate))


def group_bound(prior: float, records: int, noise_multiplier: float, releases: int = 1) -> float:
    """As :func:`per_record_bound`, for a secret that ``records`` records hold together.

    The reference is the release with all of them removed, at distance ``records * C``. It holds
    for labels that depend on each other in any way, and for any score in [0, 1] whose expectation
    without looking is ``prior``. It says little unless the noise is of the size of the batch.

    Args:
        prior: The best expected score without looking, in (0, 1].
        records: How many records the secret can be read from; for one batch, its size.

    >>> round(group_bound(0.1, 8, 16.0), 6), group_bound(0.1, 8, 0.5) > 0.999
    (0.217239, True)
    """
    check_prior(prior)
    check_whole("records", records)
    return _blow_up(prior, records * joint_mu(noise_multiplier, releases))


def noise_for_bound(prior: float, bound: float, releases: int = 1) -> float:
    """The noise multiplier at which :func:`per_record_bound` is ``bound``, without subsampling.

    >>> round(noise_for_bound(0.1, 0.15), 4)  # at most 15 % label inference among 10 classes
    4.0797
    """
    check_prior(prior)
    check_whole("releases", releases)
    if not prior < bound <= 1:
        raise ValueError(
            f"bound must be above the prior of {prior!r}, which takes no attack, and at most 1; "
            f"got {bound!r}"
        )
    return 0.0 if bound == 1 else math.sqrt(releases) / float(ndtri(bound) - ndtri(prior))


def gaussian_epsilon(
    noise_multiplier: float, delta: float, releases: int = 1, adjacency: str = "add-remove"
) -> float:
    """The exact epsilon at ``delta`` of ``releases`` releases without subsampling.

    Args:
        adjacency: ``"add-remove"`` of one record, which is what Opacus reports, or
            ``"replace-one"``, where the two gradients may be ``2 C`` apart. A changed label is
            a replacement: a statement about labels alone needs ``"replace-one"``.

    >>> round(gaussian_epsilon(1.0, 1e-5), 6)
    4.377178
    >>> round(gaussian_epsilon(1.0, 1e-5, adjacency="replace-one"), 6)
    9.997256
    """
    if adjacency not in ADJACENCIES:
        raise ValueError(f"adjacency must be one of {', '.join(ADJACENCIES)}, got {adjacency!r}")
    # Here, not at the top: the package of it loads Opacus, which takes seconds.
    from gradguard.dp.gaussian import gaussian_dp_epsilon

    radius = 1 if adjacency == "add-remove" else 2
    mu = radius * joint_mu(noise_multiplier, releases)
    # Infinity is an upper value.
    return math.inf if mu > LARGEST_MU else gaussian_dp_epsilon(mu, delta)


def class_presence_bound(
    noise_multiplier: float, releases: int = 1, swapped: bool = False, records: int = 1
) -> float:
    """Accuracy of the best test, at even odds, of whether a class is present in the batch.

    Args:
        swapped: False compares ``records`` records of the class with none in their place; true
            with as many records of another class.
        records: How many records of the class there are, or are not.

    >>> round(class_presence_bound(1.0), 6), round(class_presence_bound(1.0, swapped=True), 6)
    (0.691462, 0.841345)
    """
    check_whole("records", records)
    mu = records * joint_mu(noise_multiplier, releases)
    return float(ndtr(mu if swapped else mu / 2))


def epsilon_delta_bound(prior: float, epsilon: float, delta: float) -> float:
    """The per-record bound that follows from (epsilon, delta) alone, add/remove (R4).

    Far looser than :func:`per_record_bound`, which knows the mechanism: for mechanisms of which
    nothing else is known.

    >>> round(epsilon_delta_bound(0.1, 4.377178, 1e-5), 6)
    0.988695
    """
    check_prior(prior)
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise ValueError(
            f"expected an epsilon of at least 0 and a delta in [0, 1], got {epsilon!r}, {delta!r}"
        )
    rising = prior * _exp(epsilon) + delta
    falling = 1 - math.exp(-epsilon) * (1 - delta - prior)
    return min(rising, falling, 1.0)


def renyi_bound(prior: float, divergence: Callable[[float], float]) -> float:
    """The per-record bound that follows from Rényi divergences (R5); for any mechanism.

    Args:
        divergence: The Rényi divergence of order ``a > 1`` of the law with the record from the
            law without it; for one Gaussian release ``a / (2 z**2)``.

    >>> round(renyi_bound(0.1, lambda order: order / 2), 4)
    0.5186
    """
    check_prior(prior)

    def at(log_excess: float) -> float:
        order = 1 + math.exp(log_excess)
        return (order - 1) / order * (math.log(prior) + divergence(order))

    # Every order gives a valid bound, so that an imperfect minimum is loose and never wrong.
    found = minimize_scalar(at, bounds=(-10.0, 10.0), method="bounded")
    return min(1.0, _exp(float(found.fun)))


def _blow_up(probability: float, mu: float) -> float:
    """The most that an event of this probability can have at distance ``mu``."""
    if probability == 1 or math.isinf(mu):
        return 1.0
    return float(ndtr(ndtri(probability) + mu))


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf
