"""Whether the numbers of a row fit one another, as those of a real run do.

A row says some things twice: the blind guess is an attack among the others, and an advantage
follows from two success rates. A decision reads one of the two, a reader of the page the other; a
report in which they differ was edited or damaged, and is not to be believed in either.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradguard.evaluation.attackers import BLIND
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.metrics import Interval, advantage
from gradguard.evaluation.report import AttackScore, KnowledgeScore, Row

_ROUNDING = 1e-9


def check_consistency(row: Row) -> None:
    """Raise unless what a row says twice is the same, and every estimate lies in its interval.

    Args:
        row: Every number of it finite and in its range.

    Raises:
        UnusableInputError: The message names the number, what it is and what it must be.
    """
    if BLIND not in row.attacks:
        raise UnusableInputError(f"{BLIND} is not among its attacks, so that nobody can compare")
    if row.worst_attack not in row.attacks:
        raise UnusableInputError(f"worst_attack {row.worst_attack!r} is not among its attacks")
    for name, said, follows in _said_twice(row):
        if not abs(said - follows) <= _ROUNDING:
            raise UnusableInputError(
                f"{name} is {said:.6g}, but {follows:.6g} by its other numbers; the report was "
                "edited or damaged: run the study again"
            )
    for name, estimate, (low, high) in _estimates(row):
        if not low - _ROUNDING <= estimate <= high + _ROUNDING:
            raise UnusableInputError(
                f"{name} is {estimate:.6g}, which is not in its interval ({low:.6g} to "
                f"{high:.6g}); the report was edited or damaged: run the study again"
            )


def _said_twice(row: Row) -> Iterator[tuple[str, float, float]]:
    worst = row.attacks[row.worst_attack]
    yield "blind_asr", row.blind_asr, row.attacks[BLIND].asr
    yield "worst_asr", row.worst_asr, worst.asr
    for i, end in enumerate(("lower", "upper")):
        yield f"the {end} end of worst_ci", row.worst_ci[i], worst.ci[i]
    yield "advantage", row.advantage, advantage(row.worst_asr, row.blind_asr)
    for name, score in _scores(row):
        yield f"advantage of {name}", score.advantage, advantage(score.asr, row.blind_asr)


def _estimates(row: Row) -> Iterator[tuple[str, float, Interval]]:
    if row.blind_asr < 1:  # else an advantage is 0 by definition, and has no interval
        yield "advantage", row.advantage, row.advantage_ci
    if row.accuracy_ci is not None:
        yield "accuracy", row.accuracy, row.accuracy_ci
    for name, score in _scores(row):
        yield f"asr of {name}", score.asr, score.ci


def _scores(row: Row) -> list[tuple[str, AttackScore | KnowledgeScore]]:
    return [*row.attacks.items(), *row.knowledge.items()]
