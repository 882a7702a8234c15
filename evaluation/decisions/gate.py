"""Whether a defence may pass: the bad end of every interval, held against a limit.

A defence passes if, in *every* row of the report, what may leak is at most what is allowed. What
may leak is judged by the bad end: the highest of

- the upper end of the advantage's 95 % interval, of the attack that was chosen on calibration
  batches;
- the advantage of any other attack on the scored batches: where calibration batches are few, the
  best attack may not be the one that they favour;
- the upper end of any attack's success rate, as an advantage over the row's blind guess.

The last counts some attacks too strictly: the highest of many upper ends lies above each of them.
That error is on the safe side: it costs a good defence some more trials. A 95 % interval itself may
still miss the truth, and no attack here is the best there can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gradguard.evaluation.attackers import BLIND
from gradguard.evaluation.decisions.judgeable import Conditions, conditions
from gradguard.evaluation.decisions.prerequisites import (
    check_evidence,
    judgeable_rows,
    notes,
    understated,
)
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.metrics import advantage
from gradguard.evaluation.report import Report, Row

Quantity = Literal["advantage", "accuracy", "epsilon"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a defence must keep to.

    Args:
        max_advantage: Over a blind guess, in [0, 1]; 0 is nothing learned and 1 every label.
        min_accuracy: Of training with the defence, in [0, 1].
        max_epsilon: At the defence's own delta, at least 0.

    >>> Limits(max_advantage=20)
    Traceback (most recent call last):
    gradguard.evaluation.errors.UnusableInputError: max-advantage must be from 0 to 1 (0.2 is a \
fifth of what a blind guess leaves), got 20
    """

    max_advantage: float
    min_accuracy: float | None = None
    max_epsilon: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_advantage <= 1:
            raise UnusableInputError(
                "max-advantage must be from 0 to 1 (0.2 is a fifth of what a blind guess leaves), "
                f"got {self.max_advantage!r}"
            )
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise UnusableInputError(
                f"min-accuracy must be from 0 to 1 (0.9 is 90 %), got {self.min_accuracy!r}"
            )
        if self.max_epsilon is not None and not 0 <= self.max_epsilon < math.inf:
            raise UnusableInputError(
                f"max-epsilon must be a finite number of at least 0, got {self.max_epsilon!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row, held against one limit.

    Args:
        found: The bad end of what the report says; ``None`` for an epsilon that there is not.
        limit: What is allowed.
        attack: Which attack it is, of an advantage.
    """

    quantity: Quantity
    where: Conditions
    found: float | None
    limit: float
    attack: str | None = None

    @property
    def room(self) -> float:
        """How far the found value is inside of the limit; below 0 where it is beyond it."""
        if self.found is None:
            return -math.inf
        return self.found - self.limit if self.quantity == "accuracy" else self.limit - self.found

    @property
    def holds(self) -> bool:
        """Whether the limit is kept; one that is just reached is."""
        return self.room >= 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate has found.

    Args:
        findings: All rows, held against all limits.
        notes: What a reader should know beside it.
    """

    defense: str
    limits: Limits
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every row keeps to every limit."""
        return all(finding.holds for finding in self.findings)

    @property
    def deciding(self) -> tuple[Finding, ...]:
        """For every limit the row that is farthest beyond it, or nearest to it."""
        by_quantity: dict[Quantity, Finding] = {}
        for finding in self.findings:
            worst = by_quantity.setdefault(finding.quantity, finding)
            if finding.room < worst.room:
                by_quantity[finding.quantity] = finding
        return tuple(by_quantity.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without NaN or infinity: an infinite epsilon is ``"inf"``, as in a report."""
        return {
            "schema": 1,
            "verdict": "holds" if self.holds else "fails",
            "defense": self.defense,
            "limits": asdict(self.limits),
            "deciding": [_plain(finding) for finding in self.deciding],
            "findings": [_plain(finding) for finding in self.findings],
            "notes": list(self.notes),
        }


def judge(
    report: Report,
    *,
    defense: str,
    max_advantage: float,
    min_accuracy: float | None = None,
    max_epsilon: float | None = None,
) -> Verdict:
    """Hold a defence of a report against limits.

    Guarantees:

    - it holds only if every row keeps to every limit by the bad end of its interval; one row of
      many is enough to fail;
    - what cannot be judged never holds: it raises;
    - a lower limit, or one more row, never turns "fails" into "holds".

    Not guaranteed: that an attack which was not played reads no more. A report holds lower bounds.

    Args:
        defense: Its name in the report.
        max_advantage: In [0, 1], see this module.
        min_accuracy: In [0, 1]; the lower end of the interval over training seeds is judged.
        max_epsilon: Without differential privacy there is no epsilon, which does not hold.

    Raises:
        UnusableInputError: A limit is out of range; the report has no such defence, is incomplete
            or damaged, lacks rows, or its rows failed; training diverged; no attack was played;
            too few batches were scored; accuracy has no interval; the certificate is broken; delta
            is too large for epsilon to say anything, or nobody knows of how many records; or the
            report itself says that the attacks understate the leak.

    >>> from gradguard.evaluation import AttackScore
    >>> row = Row(
    ...     defense="sign", stage="init", composition="iid", batch_size=8, accuracy=0.9,
    ...     accuracy_ci=(0.88, 0.92), accuracy_seeds=(0.89, 0.91), diverged=False, dense_bytes=400,
    ...     step_overhead=1.1, skipped={}, worst_attack="LLG", worst_asr=0.7, worst_ci=(0.65, 0.73),
    ...     blind_asr=0.4, advantage=0.5, advantage_ci=(0.4, 0.55),
    ...     attacks={
    ...         "BestConstant": AttackScore(0.4, (0.35, 0.45), 0.0),
    ...         "LLG": AttackScore(0.7, (0.65, 0.73), 0.5),
    ...     },
    ... )
    >>> attack = {"stages": ["init"], "compositions": ["iid"], "batch_sizes": [8]}
    >>> told = {"batches_per_row": {"scored": 100}}
    >>> report = Report({"attack": attack, "defense": [{"name": "sign"}]}, (row,), told)
    >>> judge(report, defense="sign", max_advantage=0.6).holds
    True
    >>> verdict = judge(report, defense="sign", max_advantage=0.52)
    >>> verdict.holds, verdict.deciding[0].found
    (False, 0.55)
    """  # fmt: skip
    limits = Limits(max_advantage=max_advantage, min_accuracy=min_accuracy, max_epsilon=max_epsilon)
    rows = judgeable_rows(
        report,
        defense,
        needs_accuracy=limits.min_accuracy is not None,
        needs_epsilon=limits.max_epsilon is not None,
    )
    check_evidence(report, rows)
    found = tuple(finding for row in rows for finding in _findings(row, limits))
    verdict = Verdict(defense=defense, limits=limits, findings=found, notes=notes(report, rows))
    weak = understated(report, defense)
    if verdict.holds and weak:
        raise UnusableInputError(f"{weak[0]}; give them more simulated batches or trials")
    return verdict


def _findings(row: Row, limits: Limits) -> Iterator[Finding]:
    where = conditions(row)
    worst, attack = may_leak(row)
    yield Finding(
        quantity="advantage", where=where, found=worst, limit=limits.max_advantage, attack=attack
    )
    if limits.min_accuracy is not None and row.accuracy_ci is not None:
        low = min(row.accuracy_ci[0], row.accuracy)
        yield Finding(quantity="accuracy", where=where, found=low, limit=limits.min_accuracy)
    if limits.max_epsilon is not None:
        yield Finding(quantity="epsilon", where=where, found=row.epsilon, limit=limits.max_epsilon)


def may_leak(row: Row) -> tuple[float, str]:
    """The highest advantage that a row does not rule out, and which attack has it; see this module.

    A blind guess has none over itself, and no interval either.
    """
    ends = [(row.advantage_ci[1], row.worst_attack), (row.advantage, row.worst_attack)]
    for name, score in row.attacks.items():
        ends.append((score.advantage, name))
        if name != BLIND:
            ends.append((advantage(score.ci[1], row.blind_asr), name))
            ends.append((advantage(score.asr, row.blind_asr), name))
    if row.worst_attack != BLIND:
        ends.append((advantage(row.worst_ci[1], row.blind_asr), row.worst_attack))
    return max(ends)


def _plain(finding: Finding) -> dict[str, Any]:
    found = "inf" if finding.found == math.inf else finding.found
    where = finding.where._asdict()
    told = {"attack": finding.attack, "found": found, "limit": finding.limit}
    return {"quantity": finding.quantity, **where, **told, "holds": finding.holds}
