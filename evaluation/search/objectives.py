"""What is wanted of a defence, as numbers: little read, accurate, short, quick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradguard import Defense
from gradguard.evaluation.decisions.gate import may_leak
from gradguard.evaluation.decisions.prerequisites import judgeable_rows
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.nesting import weak_attacks, weak_pooling
from gradguard.evaluation.report import Report
from gradguard.evaluation.search.front import nondominated

WORST_BYTES = 2.0**40
"""What a candidate without a message is told to send: more than any model's."""

Objectives = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A defence that was tried, over all rows of its study.

    Every number but accuracy is of the row where it is worst.

    Args:
        advantage: Mean advantage over a blind guess; at least 0 counts.
        advantage_most: What may leak, see :mod:`gradguard.evaluation.decisions.gate`.
        accuracy: Mean test accuracy after training.
        accuracy_least: The bad end of its 95 % interval; the mean where one training run has none.
        bytes_per_update: Mean length of a message.
        step_overhead: Time of a training step over that of a bare one.
        failed: Why there is nothing to recommend; ``None`` where nothing failed. The numbers are
            then the worst there are: never NaN, which Optuna would leave out without a word.
        doubt: Why more leaks than was measured, where the report itself says so.
    """

    name: str
    advantage: float = 1.0
    advantage_most: float = 1.0
    accuracy: float = 0.0
    accuracy_least: float = 0.0
    bytes_per_update: float = WORST_BYTES
    step_overhead: float = math.inf
    failed: str | None = None
    doubt: str | None = None

    @property
    def objectives(self) -> Objectives:
        """What a sampler is told, all to be made small: advantage, minus accuracy, log2 of bytes.

        Not the time of a step: timings differ from run to run, and all later trials with them.
        """
        # What is read below a blind guess is not hidden better.
        return max(self.advantage, 0.0), -self.accuracy, math.log2(self.bytes_per_update)

    @property
    def time_class(self) -> int:
        """The time of a step as the nearest power of two: what a noisy timing can tell.

        >>> [Candidate(name="", step_overhead=s).time_class for s in (0.9, 1.3, 1.5, 3.1)]
        [0, 0, 1, 2]
        """
        return round(math.log2(max(self.step_overhead, 1.0)))


def candidates(report: Report, defenses: Sequence[Defense]) -> list[Candidate]:
    """What a report says of some of its defences, judged as ``gradguard gate`` does.

    Guarantees:

    - a defence that a gate would refuse to judge has failed, for the reason that a gate gives.
    """
    weak = [*weak_attacks(defenses, report.rows), *weak_pooling(report.rows)]
    found = []
    for defense in defenses:
        doubts = [w for w in weak if f"understate what {defense.name!r} leaks" in w]
        found.append(_candidate(_part(report, defense.name), defense.name, doubts))
    return found


def _part(report: Report, name: str) -> Report:
    """What concerns one defence: all of it checked for every defence would take long."""
    return replace(
        report,
        rows=tuple(row for row in report.rows if row.defense == name),
        failures=tuple(failure for failure in report.failures if failure.defense == name),
    )


def _candidate(report: Report, name: str, doubts: Sequence[str]) -> Candidate:
    try:
        rows = judgeable_rows(report, name)
    except UnusableInputError as error:
        return Candidate(name=name, failed=one_line(error))
    sizes = [row.bytes_per_update for row in rows if row.bytes_per_update is not None]
    if len(sizes) < len(rows):
        return Candidate(name=name, failed=f"{name!r} has no message that could be measured")
    return Candidate(
        name=name,
        advantage=max(row.advantage for row in rows),
        advantage_most=max(may_leak(row)[0] for row in rows),
        accuracy=min(row.accuracy for row in rows),
        accuracy_least=min(min((row.accuracy, *(row.accuracy_ci or ()))) for row in rows),
        bytes_per_update=max(sizes),
        step_overhead=max(row.step_overhead for row in rows),
        doubt=doubts[0] if doubts else None,
    )


def pareto(tried: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other is at least as good as in every respect, and better in one.

    Those that failed are not among them. The time of a step counts by its class.
    """
    sound = [candidate for candidate in tried if candidate.failed is None]
    if not sound:
        return []
    points = np.array([[*candidate.objectives, candidate.time_class] for candidate in sound])
    return [c for c, kept in zip(sound, nondominated(points), strict=True) if kept]
