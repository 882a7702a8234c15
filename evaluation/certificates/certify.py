"""The certificate of a row: which bounds hold for one defence under one kind of batch."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom, binom

from gradguard import DPSGD
from gradguard.attacks.baselines import greedy_constant_guess
from gradguard.attacks.composition import parse_dirichlet
from gradguard.evaluation.certificates.inputs import (
    Prior,
    check_rate,
    check_whole,
    joint_mu,
    label_probabilities,
)
from gradguard.evaluation.certificates.record import (
    LARGEST_MU,
    best_constant_asr,
    gaussian_epsilon,
    group_bound,
    multiset_bound,
    per_record_bound,
)

OUTSIDE = (
    "whatever is sent beside the noised gradients: losses, accuracies, example counts, "
    "BatchNorm statistics, early stopping",
    "a clipping norm or other setting that was chosen by looking at the clients' data",
    "the rounding of floating-point noise, and a random generator that can be predicted",
    "two clients that draw the same noise",
    "several records of one person, who is covered as one record only",
    "training batches that are shuffled instead of drawn by independent secret coins: then "
    "epsilon and the amplified figure of a training run do not hold, the others do",
    "what a label follows from without any message, such as public knowledge of the record: it "
    "belongs into the prior",
)
"""What no certificate here says anything about."""

_NEARLY_IID = 1e4
"""Above this concentration the beta-binomial distribution loses its digits, from 1e9 on all."""


def certify(
    dp: DPSGD,
    *,
    composition: str,
    batch_size: int,
    label_prior: npt.ArrayLike,
    training_releases: int,
    sample_rate: float,
    run_prior: npt.ArrayLike | None = None,
    releases: int = 1,
) -> dict[str, Any]:
    """What ``dp`` guarantees for the labels behind one message, and for a whole training run.

    Where labels are independent (``"iid"``), the bound on one record holds against an attacker
    who knows all others. In the other compositions labels depend on each other: what is learned
    of one tells the rest, and the bounds take all records of the batch as one group. They say
    little unless the noise is of the size of the batch, and that is what can be proven.

    Guarantees:

    - plain data without NaN or infinity, ready for JSON;
    - ``value`` and ``multiset["value"]`` are without amplification, since attacks are scored on
      records that *are* in the batch;
    - they are for ``releases`` of one and the same batch, each with noise of its own, whose mean
      is exactly one release with the noise multiplier divided by their square root;
    - with dependent labels no bound is used that needs independent ones.

    Args:
        composition: How batches were made; see :mod:`gradguard.attacks.composition`.
        batch_size: Records behind one message.
        label_prior: Class probabilities behind ``"iid"``, shape ``(classes,)``; the other
            compositions treat all classes alike.
        training_releases: Optimizer steps of a training run.
        sample_rate: The probability with which a record takes part in one of them.
        run_prior: Class probabilities of the records that are trained on; ``label_prior`` if not
            given.
        releases: How many messages of the batch the server sees, all of them with every record.

    >>> dp = DPSGD(noise_multiplier=4.0, max_grad_norm=1.0)
    >>> facts = dict(label_prior=[0.1] * 10, training_releases=100, sample_rate=0.1)
    >>> found = certify(dp, composition="iid", batch_size=8, **facts)
    >>> round(found["value"], 3), round(found["multiset"]["value"], 3)
    (0.151, 0.695)
    >>> certify(dp, composition="single", batch_size=8, **facts)["formula"]
    'R1, group of B'
    """
    check_whole("batch_size", batch_size)
    check_whole("training_releases", training_releases)
    check_rate(sample_rate)
    check_whole("releases", releases)
    prior = label_probabilities(label_prior)
    trained_on = prior if run_prior is None else label_probabilities(run_prior)
    independent = composition == "iid"
    blind = expected_blind(composition, batch_size=batch_size, label_prior=prior)
    kappa = float(prior.max()) if independent else 1 / len(prior)
    z = dp.noise_multiplier
    norm = dp.max_grad_norm
    return {
        "value": (
            per_record_bound(kappa, z, releases)
            if independent
            else group_bound(kappa, batch_size, z, releases)
        ),
        "formula": "R1" if independent else "R1, group of B",
        "kappa": kappa,
        "kappa_source": _kappa_source(independent),
        "mode": "release" if releases == 1 else "releases of one batch",
        "unit": "one record",
        "adjacency": "add-remove",
        "delta": dp.delta,
        "accountant": dp.accountant,
        "noise_multiplier": z,
        "max_grad_norm": list(norm) if isinstance(norm, tuple) else norm,
        "releases": releases,
        "sample_rate": 1.0,
        "multiset": _multiset(blind, prior, batch_size, z, independent, releases),
        "run": _run(float(trained_on.max()), z, training_releases, sample_rate),
        "epsilon_add_remove": gaussian_epsilon(z, dp.delta, releases, adjacency="add-remove"),
        "epsilon_replace_one": gaussian_epsilon(z, dp.delta, releases, adjacency="replace-one"),
        "outside": list(OUTSIDE),
    }


def _kappa_source(independent: bool) -> str:
    if independent:
        return "largest share of a class in the data that batches are drawn from"
    return "one over the number of classes: the composition treats all classes alike"


def _multiset(
    blind: float, prior: Prior, size: int, z: float, independent: bool, releases: int
) -> dict[str, Any]:
    # The group bound holds for every score in [0, 1]: its mean under any one law is that of its
    # tail probabilities, each of which moves by no more, and the bound is concave.
    bounds = {"R1 of the blind score, group of B": group_bound(blind, size, z, releases)}
    if independent:
        bounds["M1"] = multiset_bound(size, prior, z, releases)
    formula = min(bounds, key=lambda name: bounds[name])
    return {"value": bounds[formula], "formula": formula, "blind": blind}


def _run(kappa: float, z: float, releases: int, rate: float) -> dict[str, Any]:
    """A random record of the clients' data, over the whole training run."""
    return {
        "value": per_record_bound(kappa, z, releases, rate),
        "formula": "R3" if rate < 1 else "R2",
        "mode": "amplified" if rate < 1 else "run",
        "kappa": kappa,
        "unamplified": per_record_bound(kappa, z, releases),
        "unamplified_formula": "R2, a record that is in every release",
        "releases": releases,
        "sample_rate": rate,
        "assumes": "a record's label does not depend on other records"
        + (", and batches are drawn by independent secret coins" if rate < 1 else ""),
    }


def run_epsilon(dp: DPSGD, training_releases: int, sample_rate: float) -> float:
    """Epsilon (add/remove of one record, an upper value) of a whole training run at ``dp.delta``.

    Args:
        training_releases: Optimizer steps.
        sample_rate: The probability with which a record takes part in one of them.

    >>> round(run_epsilon(DPSGD(noise_multiplier=2.0, max_grad_norm=1.0), 10, 1.0), 4)
    7.5113
    """
    check_whole("training_releases", training_releases)
    check_rate(sample_rate)
    # Here, not at the top: it loads Opacus, which takes seconds.
    from gradguard.dp.ledger import epsilon_of

    if joint_mu(dp.noise_multiplier, training_releases) > LARGEST_MU:
        return math.inf  # an upper value
    history = [(dp.noise_multiplier, sample_rate, training_releases)]
    with warnings.catch_warnings():
        # Of much noise Opacus warns that more orders would give a lower epsilon: ours is upper.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return epsilon_of(history, dp.delta, dp.accountant)


def expected_blind(composition: str, *, batch_size: int, label_prior: npt.ArrayLike) -> float:
    """The best expected multiset overlap without looking, exactly, under ``composition``.

    For Dirichlet concentrations above 10,000 it is that of independent labels, an upper value.

    >>> expected_blind("single", batch_size=8, label_prior=[0.25] * 4)
    0.25
    """
    prior = label_probabilities(label_prior)
    if composition == "iid":
        return best_constant_asr(batch_size, prior)
    tails = _symmetric_tails(composition, batch_size, len(prior))
    table = np.tile(tails, (len(prior), 1))
    return min(1.0, greedy_constant_guess(table, batch_size)[1])


def _symmetric_tails(composition: str, size: int, classes: int) -> Prior:
    """``P(n_c >= m)`` for ``m = 1 .. size``, the same for each class."""
    below = np.arange(size)  # n > m - 1
    if composition == "single" or classes == 1:
        return np.full(size, 1 / classes)
    if composition == "skewed":
        fixed = np.zeros(classes, dtype=np.int64)
        fixed[:2] = size // 2, size // 4
        # A class is the major one, the minor one, or another, by the same chance as any other.
        rest = size - int(fixed.sum())
        tails: Prior = binom.sf(below[:, None] - fixed, rest, 1 / classes).mean(axis=1)
        return tails
    concentration = parse_dirichlet(composition)
    if concentration > _NEARLY_IID:
        # Independent labels are an upper value: how much of a class a guess covers is concave in
        # the class's proportion, so that proportions which vary can only lower its mean.
        even: Prior = binom.sf(below, size, 1 / classes)
        return even
    tails = betabinom.sf(below, size, concentration, (classes - 1) * concentration)
    return np.clip(np.minimum.accumulate(tails), 0.0, 1.0)
