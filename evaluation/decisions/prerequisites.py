"""Whether a report says enough about a defence for it to be judged at all.

Each of these would otherwise let a defence pass for want of numbers: no row, no attack, no
interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from gradguard import Defense
from gradguard.attacks import BASELINES
from gradguard.evaluation.attackers import attack_name
from gradguard.evaluation.certificates.law import broken_certificates, weak_deltas
from gradguard.evaluation.decisions.judgeable import asked_for, check, conditions
from gradguard.evaluation.errors import UnusableInputError, unknown
from gradguard.evaluation.nesting import weak_attacks, weak_pooling
from gradguard.evaluation.report import Report, Row

LEAST = 20
"""Scored batches, below which nothing is judged."""

FEW = 30
"""Scored batches, below which the bootstrap's intervals are often too short."""


def judgeable_rows(
    report: Report, defense: str, *, needs_accuracy: bool = False, needs_epsilon: bool = False
) -> list[Row]:
    """All rows of a defence, of which none is missing and each can be judged.

    Args:
        needs_accuracy: Whether accuracy is to be judged, for which it needs an interval.
        needs_epsilon: Whether epsilon is, for which its delta must be small enough for the records.

    Raises:
        UnusableInputError: See :func:`gradguard.evaluation.decisions.gate.judge`.
    """
    check(report)
    known = _names(report)
    if defense not in known:
        if not known:
            raise UnusableInputError("the report has no defence at all")
        raise unknown("defence in this report", defense, known)
    if not report.complete:
        raise UnusableInputError(
            "the report is incomplete, its study was interrupted; finish it before judging it"
        )
    for failure in report.failures:
        if failure.defense == defense:
            raise UnusableInputError(
                f"{defense!r} has a row that could not be made ({conditions(failure)}): "
                f"{' '.join(failure.why.split())}"
            )
    rows = [row for row in report.rows if row.defense == defense]
    missing = [c for c in asked_for(report) if c not in set(map(conditions, rows))]
    if missing or not rows:
        raise UnusableInputError(
            f"{defense!r} lacks {len(missing) or 'all'} of the rows that the study asks for "
            f"({'; '.join(map(str, missing[:3]))}); run the study to its end"
        )
    for row in rows:
        _check_row(row, needs_accuracy)
    _check_promise(report, rows, needs_epsilon)
    return rows


def _check_row(row: Row, needs_accuracy: bool) -> None:
    where = f"{row.defense!r} ({conditions(row)})"
    if row.diverged:
        raise UnusableInputError(
            f"{where}: training with it diverged, so that it cannot be deployed as it is set; "
            "lower its noise or the learning rate"
        )
    blind = {attack_name(attack) for attack in BASELINES}
    if not set(row.attacks) - blind:
        raise UnusableInputError(f"{where}: no attack was played on it, so that nothing is known")
    if needs_accuracy and row.accuracy_ci is None:
        raise UnusableInputError(
            f"{where}: its accuracy is of one seed and has no interval; run the study with "
            "training.seeds of at least 2"
        )


def _check_promise(report: Report, rows: list[Row], needs_epsilon: bool) -> None:
    if broken := broken_certificates(rows):
        raise UnusableInputError(broken[0])
    if not needs_epsilon:
        return
    data = report.provenance.get("data")
    records = data.get("client") if isinstance(data, Mapping) else None
    if not _is_whole(records) or records < 1:
        raise UnusableInputError(
            "epsilon says something only at a delta far below one over the number of records, "
            "and the report does not say how many there are (provenance.data.client); run the "
            "study again"
        )
    for sentence in weak_deltas(rows, records):
        raise UnusableInputError(sentence)


def check_evidence(report: Report, rows: list[Row]) -> None:
    """Raise where too few batches were scored for any interval to be believed.

    A bootstrap of one batch is a point, and of a few that agree as well.
    """
    scored = _scored(report)
    if not _is_whole(scored):
        raise UnusableInputError(
            "the report does not say how many batches were scored "
            "(provenance.batches_per_row.scored), so that no interval is to be believed; run the "
            "study again"
        )
    if scored < LEAST:
        raise UnusableInputError(
            f"only {scored} batches were scored, too few for an interval; run the study with "
            f"attack.trials of at least {LEAST}"
        )
    for row in rows:
        if not row.blind_asr < 1:
            raise UnusableInputError(
                f"{row.defense!r} ({conditions(row)}): a blind guess was right every time, so that "
                "nothing can be told of an attack; run more trials, or larger batches"
            )


def _scored(report: Report) -> Any:
    counts = report.provenance.get("batches_per_row")
    return counts.get("scored") if isinstance(counts, Mapping) else None


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def understated(report: Report, defense: str) -> list[str]:
    """Where the report's own numbers say that the attacks on this defence were too weak."""
    defenses = []
    for table in _tables(report):
        try:
            defenses.append(Defense.from_dict(table))
        except (ValueError, TypeError, KeyError):  # of the user's own transform there is only text
            continue
    own = [row for row in report.rows if row.defense == defense]
    sentences = [*weak_attacks(defenses, report.rows), *weak_pooling(own)]
    return [s for s in sentences if f"understate what {defense!r} leaks" in s]


def notes(report: Report, rows: list[Row]) -> tuple[str, ...]:
    """What weakens a verdict: attacks that were not played, and numbers that rest on little."""
    skipped = {(name, " ".join(why.split())) for row in rows for name, why in row.skipped.items()}
    said = [f"{name} was not run: {why}" for name, why in sorted(skipped)]
    attack = report.study.get("attack")
    named = attack.get("attackers", "all") if isinstance(attack, Mapping) else "all"
    if named != "all":
        names = ", ".join(map(str, named)) if isinstance(named, list) else str(named)
        said.append(f"the study names its attackers ({names}); others may read more")
    if report.provenance.get("models_attacked") == 1:
        said.append("one model was attacked, so that no interval shows how models differ")
    scored = _scored(report)
    if _is_whole(scored) and scored < FEW:
        said.append(
            f"only {scored} batches were scored; an interval from so few is often too short"
        )
    return tuple(said)


def _tables(report: Report) -> list[dict[str, Any]]:
    tables = report.study.get("defense")
    return [t for t in tables if isinstance(t, dict)] if isinstance(tables, list) else []


def _names(report: Report) -> list[str]:
    told = [table.get("name") for table in _tables(report)]
    found = [name for name in told if isinstance(name, str) and name.isprintable()]
    rows = [row.defense for row in report.rows] + [failure.defense for failure in report.failures]
    return list(dict.fromkeys([*found, *rows]))
