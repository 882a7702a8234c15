"""A report that can be judged: all of it there, every number finite and within its range.

A report is read from a file that anybody may have written or cut short. What a decision rests on
is therefore checked before it: of two numbers of which one is NaN, every comparison is false.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from gradguard.evaluation.decisions.consistency import check_consistency
from gradguard.evaluation.errors import UnusableInputError, one_line, printable
from gradguard.evaluation.report import AttackScore, Failure, Report, Row, read_report
from gradguard.evaluation.specs import AttackSpec, build

FILE = "report.json"
CONDITIONS = ("stages", "compositions", "batch_sizes", "rounds")
"""Keys of a study's ``[attack]`` that decide which rows there are."""


class Conditions(NamedTuple):
    """Under what a defence was attacked."""

    stage: str
    composition: str
    batch_size: int
    rounds: int = 1

    def __str__(self) -> str:
        rounds = "" if self.rounds == 1 else f", {self.rounds} rounds"
        return f"{self.stage}, {self.composition}, B = {self.batch_size}{rounds}"


def conditions(row: Row | Failure) -> Conditions:
    """Those of a row, made or failed."""
    return Conditions(row.stage, row.composition, row.batch_size, row.rounds)


def asked_for(report: Report) -> list[Conditions]:
    """The conditions under which the study of a report attacks every defence.

    >>> asked_for(Report({"attack": {"batch_sizes": [8], "compositions": ["iid"]}}, ()))[0]
    Conditions(stage='init', composition='iid', batch_size=8, rounds=1)
    """
    table = report.study.get("attack", {})
    known = table if isinstance(table, dict) else {}
    spec = build(AttackSpec, "attack", {k: known[k] for k in CONDITIONS if k in known})
    return [
        Conditions(stage, composition, size, rounds)
        for stage in spec.stages
        for composition in spec.compositions
        for size in spec.batch_sizes
        for rounds in spec.rounds
    ]


def read_judgeable(path: Path) -> Report:
    """The report in a ``report.json``, or in the folder that holds one, with all of it checked.

    Guarantees:

    - every share is in [0, 1], every interval a pair in order, no number is NaN, and only epsilon
      may be infinite;
    - no row is there twice, every estimate lies in its interval, and what a row says twice is the
      same: the blind guess, the worst attack, every advantage;
    - names are printable: none can break a line, or a terminal, that shows it.

    Raises:
        UnusableInputError: There is none, it cannot be read, or something in it is not as above;
            one line that names the file.
    """
    try:
        file = path / FILE if path.is_dir() else path
        if not file.exists():
            what = f"holds no {FILE}" if file != path else "no such file"
            raise UnusableInputError(f"{what}; give what gradguard evaluate wrote")
        if not file.is_file():  # a pipe or a device may never end
            raise UnusableInputError(f"is no regular file; give a {FILE}")
        report = read_report(file)
        check(report)
    except RecursionError as error:
        raise UnusableInputError(f"{_shown(path)}: is nested too deeply to be read") from error
    except (ValueError, OSError) as error:
        text = one_line(error).removeprefix(f"{path}: ")
        raise UnusableInputError(f"{_shown(path)}: {printable(text)[:400]}") from error
    return report


def check(report: Report) -> None:
    """Raise unless every part of a report is of its type and every number in its range.

    Raises:
        UnusableInputError: The message names the row and the field.
    """
    for name in ("study", "provenance"):
        if not isinstance(getattr(report, name), dict):
            raise UnusableInputError(f"its {name} is no table; the report is damaged")
    if not isinstance(report.complete, bool):
        raise UnusableInputError(f"complete must be true or false, got {report.complete!r}")
    for failure in report.failures:
        _check_where(failure)
        _check_text("why", failure.why)
    known = {(failure.defense, conditions(failure)) for failure in report.failures}
    for row in report.rows:
        _check_where(row)
        # Of two rows in one place, one would be judged and the other shown.
        if (key := (row.defense, conditions(row))) in known:
            raise UnusableInputError(f"row {key[0]!r} ({key[1]}) is there twice")
        known.add(key)
        try:
            _check_row(row)
        except (UnusableInputError, AttributeError, TypeError, KeyError) as error:
            where = f"{row.defense!r} ({conditions(row)})"
            raise UnusableInputError(f"row {where}: {one_line(error)}") from error


def _check_where(row: Row | Failure) -> None:
    for name in ("defense", "stage", "composition"):
        _check_text(name, getattr(row, name), printable=True)
    for name in ("batch_size", "rounds"):
        _check_whole(name, getattr(row, name), 1)


def _check_row(row: Row) -> None:
    _check_whole("dense_bytes", row.dense_bytes, 0)
    if not isinstance(row.diverged, bool):
        raise UnusableInputError(f"diverged must be true or false, got {row.diverged!r}")
    for name in ("accuracy", "worst_asr", "blind_asr"):
        _check_number(name, getattr(row, name), 0, 1)
    _check_number("advantage", row.advantage, -math.inf, 1)
    _check_number("step_overhead", row.step_overhead, 0)
    _check_interval("advantage_ci", row.advantage_ci, -math.inf)
    _check_interval("worst_ci", row.worst_ci, 0)
    if row.accuracy_ci is not None:
        _check_interval("accuracy_ci", row.accuracy_ci, 0)
    for share in row.accuracy_seeds:
        _check_number("accuracy_seeds", share, 0, 1)
    if row.bytes_per_update is not None:
        _check_number("bytes_per_update", row.bytes_per_update, 0)
    for name, score in row.attacks.items():
        _check_score(name, score)
    for level, found in row.knowledge.items():
        _check_text("a level of knowledge", level, printable=True)
        _check_text("an attack", found.attack, printable=True)
        _check_score(level, AttackScore(found.asr, found.ci, found.advantage))
    for name, why in row.skipped.items():
        _check_text("a skipped attack", name, printable=True)
        _check_text(f"why {name} was skipped", why)
    _check_promises(row)
    check_consistency(row)


def _check_promises(row: Row) -> None:
    if row.epsilon is not None and row.epsilon != math.inf:
        _check_number("epsilon", row.epsilon, 0)
    if row.delta is not None:
        _check_number("delta", row.delta, 0, 1)
        if not row.delta < 1:  # at 1 whatever is published keeps to it
            raise UnusableInputError("delta must be below 1")
    if row.epsilon is not None and row.delta is None:
        raise UnusableInputError("epsilon without delta; the report is damaged")
    if row.certificate is not None:
        for name, value in (
            ("certificate.value", row.certificate["value"]),
            ("certificate.multiset.value", row.certificate["multiset"]["value"]),
        ):
            _check_number(name, value, 0, 1 + 1e-9)


def _check_score(name: str, score: AttackScore) -> None:
    _check_text("an attack", name, printable=True)
    _check_number(f"asr of {name}", score.asr, 0, 1)
    _check_number(f"advantage of {name}", score.advantage, -math.inf, 1)
    _check_interval(f"ci of {name}", score.ci, 0)


def _check_text(name: str, value: object, *, printable: bool = False) -> None:
    if not isinstance(value, str) or (printable and not (value.strip() and value.isprintable())):
        kind = "printable text" if printable else "text"
        raise UnusableInputError(f"{name} must be {kind}, got {value!r}")


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise UnusableInputError(f"{name} must be a whole number of at least {least}")


def _check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    # Below 1e300: sums of squares and percentages of it are still numbers. Written for NaN to fail.
    if not (numeric and low <= value <= high and abs(value) < 1e300):
        bound = f"at most {high:.0f}" if low == -math.inf else f"from {low:g} to {high:g}"
        raise UnusableInputError(f"{name} must be a finite number {bound}, got {value!r:.40}")


def _check_interval(name: str, value: Any, low: float) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise UnusableInputError(f"{name} must be two numbers, got {value!r:.80}")
    for end in value:
        _check_number(name, end, low, 1)
    if not value[0] <= value[1]:
        raise UnusableInputError(f"{name} must be in order, got {value!r}")


def _shown(path: Path) -> str:
    return printable(str(path))[:200]
