"""What got better or worse from one report to another, beyond what chance explains.

Rows are matched by defence, stage, composition, batch size and rounds. A share, which has a 95 %
interval in both reports, has changed where the 95 % interval of the *difference* leaves out zero.
That interval is squared and added from the two: a rise counts if it is more than
``sqrt((high_a - a)**2 + (b - low_b)**2)``, a fall likewise from the other two ends (R. G. Newcombe,
"Interval estimation for the difference between independent proportions", Statistics in Medicine 17,
1998, method 10). Two intervals that do not overlap always count, two that overlap a little may.

The rule takes the draws of both reports as independent. Reports of one seed share many of them, and
then the rule is cautious: it may miss a change, and calls less than 5 % of equals changed.

An attack that was not chosen on calibration batches counts as well: the one with the highest rate
of each row is compared with that of the other. Where an attack that read most in the first report
was not run in the second, less leakage is no improvement: it was looked for less.

Epsilon, its delta and certificates are computed, and any change of them counts; see
:mod:`gradguard.evaluation.decisions.promises`. So do bytes under one seed; under two, the
messages are others, and a mean of few has no interval: then only more than :data:`BYTES_MARGIN`
counts. Step time depends on what else the machine was doing, and is never judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gradguard.evaluation.decisions.judgeable import Conditions, check, conditions
from gradguard.evaluation.decisions.likewise import different_definitions, unfairness
from gradguard.evaluation.decisions.promises import Promise, differences, undecided
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.metrics import Interval, advantage
from gradguard.evaluation.report import Report, Row

Quantity = Literal["advantage", "strongest attack", "accuracy", "bytes"] | Promise
Outcome = Literal["worse", "not compared", "not worse"]
Key = tuple[str, Conditions]
_Read = tuple[str, float, Interval]

BYTES_MARGIN = 0.01
"""Share by which bytes must differ to count as changed, where the seeds are not the same."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A number that changed beyond what chance explains.

    Args:
        rows: Where; accuracy and bytes belong to a defence, and are the same in all of its rows.
        before: ``None`` for a promise that there was not.
        needed: The least difference that counts here; 0 of what is exact.
    """

    quantity: Quantity
    defense: str
    rows: tuple[Conditions, ...]
    before: float | None
    after: float | None
    needed: float
    better: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two reports say of the same rows.

    Args:
        changes: The worse ones first.
        matched: Rows that are in both.
        compared: Pairs of numbers with intervals that were compared; of equal ones, 2.5 % seem
            worse by chance if the draws are independent.
        failed: Rows that the first report has, and that could not be made in the second.
        only_before: Rows that the second report lacks.
        only_after: Rows that the first report lacks.
        uncompared: What could not be compared, and why.
        warnings: Differences that make the comparison unfair.
    """

    changes: tuple[Change, ...]
    matched: int
    compared: int
    failed: tuple[str, ...] = ()
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """Whether something got worse; a row that can no longer be made did."""
        return bool(self.failed) or any(not change.better for change in self.changes)

    @property
    def verdict(self) -> Outcome:
        """Only ``"not worse"`` may pass; it is none where rows of the first report are missing."""
        if self.worse:
            return "worse"
        return "not compared" if self.only_before else "not worse"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without NaN or infinity."""
        changes = [
            asdict(change)
            | {"rows": [where._asdict() for where in change.rows]}
            | {"before": _finite(change.before), "after": _finite(change.after)}
            for change in self.changes
        ]
        return {"schema": 1, "verdict": self.verdict} | asdict(self) | {"changes": changes}


def compare(before: Report, after: Report) -> Comparison:
    """What got better or worse from ``before`` to ``after``; see this module for the rule.

    Guarantees:

    - a report is not worse than itself;
    - exchanged, what was better is worse, and the other way round, if the same attacks were run;
    - leakage is never better where the attack that read most before was not run again;
    - intervals that do not overlap are a change, and wider intervals never make one.

    Raises:
        UnusableInputError: One of the two is incomplete or damaged, or no row is in both.

    >>> compare(Report({}, ()), Report({}, ()))
    Traceback (most recent call last):
    gradguard.evaluation.errors.UnusableInputError: no row is in both reports: nothing to compare
    """
    for name, report in (("first", before), ("second", after)):
        check(report)
        if not report.complete:
            raise UnusableInputError(
                f"the {name} report is incomplete, its study was interrupted; finish it first"
            )
    old, new = _by_key(before), _by_key(after)
    failed = {(f.defense, conditions(f)) for f in after.failures}
    both = [(row, new[key]) for key, row in old.items() if key in new and key not in failed]
    broken = [key for key in old if key in failed]
    if not both and not broken:
        raise UnusableInputError("no row is in both reports: nothing to compare")
    same_seed = before.study.get("seed") == after.study.get("seed")
    changes = _merged([change for pair in both for change in _changes(*pair, same_seed)])
    return Comparison(
        changes=tuple(sorted(changes, key=lambda change: change.better)),
        matched=len(both),
        compared=sum(_pairs(*pair) for pair in both),
        failed=tuple(map(_words, broken)),
        only_before=tuple(_words(key) for key in old if key not in new and key not in failed),
        only_after=tuple(_words(key) for key in new if key not in old),
        uncompared=tuple(dict.fromkeys(said for pair in both for said in _uncompared(*pair))),
        warnings=(*unfairness(before, after), *different_definitions(before, after)),
    )


def needed(before: float, first: Interval, after: float, second: Interval) -> float:
    """The least difference of two estimates that counts as a change, from their intervals.

    >>> round(needed(0.50, (0.40, 0.60), 0.70, (0.60, 0.80)), 3)
    0.141
    """
    lower, upper = (first, second) if after >= before else (second, first)
    below, above = min(before, after), max(before, after)
    return math.hypot(max(lower[1] - below, 0.0), max(above - upper[0], 0.0))


def _changes(old: Row, new: Row, same_seed: bool) -> Iterator[Change]:
    yield from _leakage(old, new)
    yield from _accuracy(old, new)
    a, b = old.bytes_per_update, new.bytes_per_update
    if a is not None and b is not None:
        margin = 0.0 if same_seed else BYTES_MARGIN * max(a, b)
        if abs(b - a) > margin:
            yield _change("bytes", old, a, b, margin, better=b < a)
    for found in differences(old, new):
        yield _change(found.quantity, old, found.before, found.after, 0.0, better=found.better)


def _leakage(old: Row, new: Row) -> Iterator[Change]:
    pairs: list[tuple[Quantity, _Read, _Read]] = [("advantage", _chosen(old), _chosen(new))]
    if _unchosen(old, new):
        pairs.append(("strongest attack", _strongest(old), _strongest(new)))
    for quantity, (_, a, first), (_, b, second) in pairs:
        least = needed(a, first, b, second)
        if b - a > least or (a - b > least and not _lost(old, new)):
            yield _change(quantity, old, a, b, least, better=b < a)


def _chosen(row: Row) -> _Read:
    return row.worst_attack, row.advantage, row.advantage_ci


def _strongest(row: Row) -> _Read:
    """The attack with the highest rate, over the blind guess of the row."""
    name = max(row.attacks, key=lambda name: row.attacks[name].asr)
    low, high = (advantage(end, row.blind_asr) for end in row.attacks[name].ci)
    return name, row.attacks[name].advantage, (low, high)


def _unchosen(old: Row, new: Row) -> bool:
    return _strongest(old)[0] != old.worst_attack or _strongest(new)[0] != new.worst_attack


def _lost(old: Row, new: Row) -> list[str]:
    """Attacks that read most before, and were not run again."""
    before = dict.fromkeys((old.worst_attack, _strongest(old)[0]))
    return [name for name in before if name not in new.attacks]


def _accuracy(old: Row, new: Row) -> Iterator[Change]:
    if old.diverged != new.diverged:  # no number lies behind the zero of a run that diverged
        yield _change("accuracy", old, old.accuracy, new.accuracy, 0.0, better=old.diverged)
    elif old.accuracy_ci is not None and new.accuracy_ci is not None and not old.diverged:
        least = needed(old.accuracy, old.accuracy_ci, new.accuracy, new.accuracy_ci)
        if abs(new.accuracy - old.accuracy) > least:
            better = new.accuracy > old.accuracy
            yield _change("accuracy", old, old.accuracy, new.accuracy, least, better=better)


def _has_intervals(old: Row, new: Row) -> bool:
    return old.accuracy_ci is not None and new.accuracy_ci is not None


def _pairs(old: Row, new: Row) -> int:
    return 1 + _unchosen(old, new) + _has_intervals(old, new)


def _uncompared(old: Row, new: Row) -> Iterator[str]:
    """Each begins with what it is that could not be compared."""
    for name in _lost(old, new):
        why = new.skipped.get(name, "it is not in that report")
        yield (
            f"leakage of {_words((old.defense, conditions(old)))}: {name}, which read most in the "
            f"first report, was not run in the second ({why})"
        )
    if old.diverged and new.diverged:
        yield f"accuracy of {old.defense!r}: training diverged in both"
    elif old.diverged == new.diverged and not _has_intervals(old, new):
        yield f"accuracy of {old.defense!r}: from one seed there is no interval"
    if (old.bytes_per_update is None) != (new.bytes_per_update is None):
        yield f"bytes of {old.defense!r}: measured in one report only"
    if (said := undecided(old, new)) is not None:
        yield said


def _change(
    quantity: Quantity, row: Row, a: float | None, b: float | None, least: float, *, better: bool
) -> Change:
    where = (conditions(row),)
    return Change(
        quantity=quantity, defense=row.defense, rows=where, before=a, after=b, needed=least,
        better=better,
    )  # fmt: skip


def _merged(changes: Sequence[Change]) -> list[Change]:
    """One change for what is the same number in several rows of a defence."""
    found: dict[object, Change] = {}
    for change in changes:
        alone = change.rows if change.quantity in ("advantage", "strongest attack") else ()
        key = (change.quantity, change.defense, change.before, change.after, alone)
        rows = (found[key].rows if key in found else ()) + change.rows
        found[key] = Change(**(vars(change) | {"rows": rows}))
    return list(found.values())


def _by_key(report: Report) -> dict[Key, Row]:
    return {(row.defense, conditions(row)): row for row in report.rows}


def _words(key: Key) -> str:
    return f"{key[0]} ({key[1]})"


def _finite(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value
