"""What is wanted of a defence, as numbers: little read, accurate, short, quick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradguard.evaluation.report import Report, Row
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
        advantage_most: The bad end of its 95 % interval, or what an attack reads that was not
            chosen on the calibration batches, if that is more.
        accuracy: Mean test accuracy after training.
        accuracy_least: The bad end of its 95 % interval; the mean where one training run has none.
        bytes_per_update: Mean length of a message.
        step_overhead: Time of a training step over that of a bare one.
        failed: Why there is nothing to recommend; ``None`` where nothing failed. The numbers are
            then the worst there are: never NaN, which Optuna would leave out without a word.
    """

    name: str
    advantage: float = 1.0
    advantage_most: float = 1.0
    accuracy: float = 0.0
    accuracy_least: float = 0.0
    bytes_per_update: float = WORST_BYTES
    step_overhead: float = math.inf
    failed: str | None = None

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


def candidates(report: Report, names: Sequence[str], *, rows_each: int) -> list[Candidate]:
    """What a report says of some of its defences.

    Args:
        rows_each: How many rows a defence has if none failed.
    """
    return [_candidate(report, name, rows_each) for name in names]


def _candidate(report: Report, name: str, rows_each: int) -> Candidate:
    why = [failure.why for failure in report.failures if failure.defense == name]
    if why:
        return Candidate(name=name, failed=why[0])
    rows = [row for row in report.rows if row.defense == name]
    if not rows or len(rows) < rows_each:
        return Candidate(name=name, failed=f"{len(rows)} of {rows_each} rows were finished")
    if any(row.diverged for row in rows):
        return Candidate(name=name, failed="training with it diverges")
    sizes = [row.bytes_per_update for row in rows]
    if any(size is None for size in sizes):
        return Candidate(name=name, failed="it has no message that could be measured")
    return Candidate(
        name=name,
        advantage=max(row.advantage for row in rows),
        advantage_most=max(most_advantage(row) for row in rows),
        accuracy=min(row.accuracy for row in rows),
        accuracy_least=min(
            row.accuracy if row.accuracy_ci is None else row.accuracy_ci[0] for row in rows
        ),
        bytes_per_update=max(size for size in sizes if size is not None),
        step_overhead=max(row.step_overhead for row in rows),
    )


def most_advantage(row: Row) -> float:
    """The most that may be read in a row: see ``advantage_most`` of :class:`Candidate`."""
    return max([row.advantage_ci[1], *(score.advantage for score in row.attacks.values())])


def pareto(tried: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other is at least as good as in every respect, and better in one.

    Those that failed are not among them. The time of a step counts by its class.
    """
    sound = [candidate for candidate in tried if candidate.failed is None]
    if not sound:
        return []
    points = np.array([[*candidate.objectives, candidate.time_class] for candidate in sound])
    return [c for c, kept in zip(sound, nondominated(points), strict=True) if kept]
