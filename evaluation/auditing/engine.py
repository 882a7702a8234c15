"""Auditing a client: how well can messages with a canary be told from messages without?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradguard.dp.gaussian import gaussian_dp_epsilon
from gradguard.evaluation.auditing.audit import (
    epsilon_lower_bound,
    mu_lower_bound,
    trade_off_violated,
)
from gradguard.evaluation.auditing.canaries import Batch, Canary, check_neighbours
from gradguard.evaluation.auditing.messages import (
    AuditedClient,
    Sampler,
    blocks,
    difference_of,
    flat,
    message,
)
from gradguard.evaluation.auditing.statistics import (
    LEARNED_LIMIT,
    Array,
    Reader,
    choose_rule,
    learn_direction,
)

ADJACENCY = {"add-remove": "add-remove", "label-flip": "replace-one"}

_LEAST_DRAWS = 100


@dataclass(frozen=True)
class AuditResult:
    """What one audit found; every bound holds with probability ``1 - alpha``.

    Args:
        canary: What distinguishes both batches.
        adjacency: The neighbouring relation that this canary tests, and that the claim is of.
        claim_mu: What was claimed, or ``None`` where the claim is another curve.
        claim_epsilon: The claim at ``delta``, likewise.
        mu_lower: A2; ``None`` where the claim is not one of Gaussian DP.
        epsilon_lower: At ``delta``; of ``mu_lower`` where there is one, else A1.
        mu_ceiling: What flawless distinguishing would have shown with so many draws.
        statistic: What the distinguisher looked at.
        flagged: The claim is refuted.
    """

    canary: str
    adjacency: str
    claim_mu: float | None
    claim_epsilon: float | None
    mu_lower: float | None
    epsilon_lower: float
    mu_ceiling: float
    method: str
    statistic: str
    false_positives: int
    negatives: int
    false_negatives: int
    positives: int
    draws: int
    rounds: int
    alpha: float
    delta: float
    flagged: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinity as text."""
        return {k: "inf" if v == math.inf else v for k, v in asdict(self).items()}


def audit_client(
    client: AuditedClient,
    with_canary: Batch,
    without_canary: Batch,
    *,
    canary: Canary,
    claim_mu: float | None = None,
    claim: Callable[[float], float] | None = None,
    draws: int = 20_000,
    rounds: int = 1,
    alpha: float = 0.05,
    delta: float = 1e-5,
    seed: int,
) -> AuditResult:
    """Release two neighbouring batches ``draws`` times each; refute the claim or fail to.

    Each batch is summed once. A tenth of the draws chooses a statistic and a threshold; the
    rest is counted. Draws with and without the canary are made in random order, so that a client
    that drifts is not taken for one that leaks.

    Guarantees:

    - a claim that holds is refuted with probability at most ``alpha``;
    - only neighbours of the canary's own kind are accepted.

    Not guaranteed: that a broken client is caught. The bound is what these statistics found with
    this canary; passing is no proof.

    Args:
        client: Its ``release`` is called ``2 * draws * rounds`` times, with the same sums. A
            client that remembers must have ``reset()``, which is called before every draw.
        with_canary: Inputs and labels.
        without_canary: For ``"add-remove"`` the same without one example; for ``"label-flip"``
            the same inputs with one other label.
        canary: Decides what the claim must be of: with noise multiplier z, ``"add-remove"``
            tests ``mu = 1 / z`` and ``"label-flip"`` replace-one's ``mu = 2 / z``.
        claim_mu: Claimed Gaussian DP of all rounds together, ``sqrt(rounds)`` times that of one.
        claim: In place of it, a trade-off curve as in :func:`trade_off_violated`.
        rounds: Releases behind each draw, added up: for mechanisms that remember.
        seed: Decides the order of the draws; the noise is the client's own.

    Raises:
        ValueError: The batches are no neighbours of that kind, or a number is out of range.
    """
    _check_claim(claim_mu, claim)
    check_neighbours(with_canary, without_canary, canary)
    if not rounds >= 1:
        raise ValueError(f"rounds must be at least 1, got {rounds!r}")
    sums = {True: client.gradients(*with_canary), False: client.gradients(*without_canary)}
    first = message(client, sums[True], 1)
    sizes = {name: tensor.numel() for name, tensor in first.items()}

    def sample(canary_in: bool, count: int) -> Array:
        return np.stack([flat(message(client, sums[canary_in], rounds)) for _ in range(count)])

    return audit_sampler(
        sample,
        difference_of(sums[True], sums[False], sum(sizes.values())),
        sizes=sizes,
        canary=canary,
        claim_mu=claim_mu,
        claim=claim,
        draws=draws,
        rounds=rounds,
        alpha=alpha,
        delta=delta,
        seed=seed,
    )


def audit_sampler(
    sample: Sampler,
    difference: Array,
    *,
    sizes: dict[str, int],
    canary: Canary,
    claim_mu: float | None = None,
    claim: Callable[[float], float] | None = None,
    draws: int,
    rounds: int = 1,
    alpha: float,
    delta: float,
    seed: int,
) -> AuditResult:
    """The same for any source of messages; see :func:`audit_client`.

    Args:
        sample: Draws independent messages.
        difference: Of the clipped sums, shape ``(coordinates,)``.
        sizes: Coordinates by tensor name, in the order of the messages.
    """
    _check_claim(claim_mu, claim)
    if not draws >= _LEAST_DRAWS:
        raise ValueError(f"draws must be at least {_LEAST_DRAWS}, got {draws!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha!r}")
    rng = np.random.default_rng(seed)
    fitting, choosing = draws // 20, draws // 20
    reader = _fit(sample, rng, fitting, difference, sizes)
    ones, zeros = _read(sample, rng, choosing, reader, slice(None))
    rule = choose_rule(reader.labels(), ones, zeros, alpha)
    # From here on nothing is chosen any more: these draws are counted, and no others.
    counted = draws - fitting - choosing
    ones, zeros = _read(sample, rng, counted, reader, slice(rule.column, rule.column + 1))
    errors = rule.errors(zeros[:, 0], canary=False), rule.errors(ones[:, 0], canary=True)
    counts = errors[0], counted, errors[1], counted
    mu = None if claim_mu is None else mu_lower_bound(*counts, alpha)
    return AuditResult(
        canary=canary,
        adjacency=ADJACENCY[canary],
        claim_mu=claim_mu,
        claim_epsilon=None if claim_mu is None else gaussian_dp_epsilon(claim_mu, delta),
        mu_lower=mu,
        epsilon_lower=(
            epsilon_lower_bound(*counts, delta, alpha)
            if mu is None
            else gaussian_dp_epsilon(mu, delta)
        ),
        mu_ceiling=mu_lower_bound(0, counted, 0, counted, alpha),
        method="A2: Gaussian DP" if claim is None else "A3: trade-off curve",
        statistic=rule.name,
        false_positives=errors[0],
        negatives=counted,
        false_negatives=errors[1],
        positives=counted,
        draws=draws,
        rounds=rounds,
        alpha=alpha,
        delta=delta,
        flagged=(
            trade_off_violated(*counts, alpha, trade_off=claim)
            if claim is not None
            else mu is not None and claim_mu is not None and mu > claim_mu
        ),
    )


def _fit(
    sample: Sampler, rng: np.random.Generator, count: int, difference: Array, sizes: dict[str, int]
) -> Reader:
    """A reader with one message of each kind to compare with, and a learned direction."""
    few = count if len(difference) <= LEARNED_LIMIT else 1
    stacked = dict(blocks(sample, rng, few, len(difference)))  # few enough for one block
    seen = np.stack([stacked[True][0], stacked[False][0]])
    learned = learn_direction(stacked[True], stacked[False]) if few > 1 else None
    seen = np.where(np.isfinite(seen), seen, 0.0)
    return Reader(difference, tuple(sizes.values()), tuple(sizes), seen, learned)


def _read(
    sample: Sampler, rng: np.random.Generator, count: int, reader: Reader, columns: slice
) -> tuple[Array, Array]:
    """Statistics of ``count`` messages with the canary and as many without."""
    found: dict[bool, list[Array]] = {True: [], False: []}
    for side, block in blocks(sample, rng, count, len(reader.difference)):
        found[side].append(reader.read(block)[:, columns])
    return np.concatenate(found[True]), np.concatenate(found[False])


def _check_claim(claim_mu: float | None, claim: Callable[[float], float] | None) -> None:
    if (claim_mu is None) == (claim is None):
        raise ValueError("give either claim_mu or claim, a trade-off curve")
    if claim_mu is not None and not claim_mu > 0:
        raise ValueError(f"claim_mu must be positive, got {claim_mu!r}")
