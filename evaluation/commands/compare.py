"""``gradguard compare``: what got better or worse from one report to another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gradguard.evaluation.commands.stating import (
    Format,
    FormatOption,
    Statement,
    refusals_stated,
    state,
)
from gradguard.evaluation.decisions.compare import Change, Comparison, compare
from gradguard.evaluation.decisions.judgeable import read_judgeable
from gradguard.evaluation.errors import printable
from gradguard.evaluation.views.markdown import escape, table
from gradguard.evaluation.views.workflow_commands import Level

TITLE = "gradguard compare"
MOST = 10
"""Annotations of a kind that GitHub shows of one step."""

LISTED = 5
"""Rows in only one report that are named; JSON has them all."""


def command(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The earlier report.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The later report.")],
    form: Annotated[Format, FormatOption] = Format.TEXT,
) -> None:
    """Say what got better or worse from report A to report B, beyond the intervals.

    Leakage and accuracy count as changed where the 95 % interval of their difference leaves out
    zero; bytes, epsilon and certificates are exact; step time is not judged. Exit code 0: nothing
    that was compared got worse. 1: something did, or rows of A are not in B. 2: they cannot be
    compared.
    """
    with refusals_stated(title=TITLE, form=form):
        found = compare(read_judgeable(before), read_judgeable(after))
    said = Statement(
        text=words(found),
        table={"command": "compare"} | found.to_dict(),
        annotations=_annotations(found),
        markdown=summary(found),
    )
    state(said, title=TITLE, form=form)
    raise typer.Exit(0 if found.verdict == "not worse" else 1)


def words(found: Comparison) -> str:
    """The verdict, every change, what could not be compared, and what makes it unfair.

    >>> print(words(Comparison(changes=(), matched=2, compared=3, only_after=("b (init, iid, B = 8)",))))
    gradguard compare: nothing got worse
      0 better, 0 worse, of 2 rows in both
      3 pairs of intervals compared; of equal ones 2.5 % seem worse by chance (here at most 0.1)
      only in B: b (init, iid, B = 8)
    """  # noqa: E501
    return "\n".join(
        [f"{TITLE}: {_verdict(found)}", *(f"  {printable(line)}" for line in _lines(found))]
    )


def summary(found: Comparison) -> str:
    """The same as Markdown."""
    body = [
        [
            "better" if change.better else "**worse**",
            *(change.quantity, escape(change.defense)),
            *(_value(change, change.before), _value(change, change.after)),
            escape(_where(change)),
        ]
        for change in found.changes
    ]
    head = ["", "what", "defence", "before", "after", "where"]
    parts = [f"### gradguard compare: {_verdict(found)}"]
    parts += [table(head, body, text=3)] if body else []
    parts.append("\n".join(f"- {escape(line)}" for line in _facts(found)))
    return "\n\n".join(parts)


def _verdict(found: Comparison) -> str:
    """The headline, which claims nothing of what was not compared."""
    missing = Counter(said.split(" ", 1)[0] for said in found.uncompared)
    left = [f"{name} ({count})" for name, count in missing.items()]
    if found.only_before:
        left.insert(0, f"rows of A that B lacks ({len(found.only_before)})")
    said = "something got worse" if found.worse else "nothing got worse"
    if not left:
        return said
    if not found.worse:
        said = "nothing that was compared got worse"
    return f"{said}; not compared: {', '.join(left)}"


def _lines(found: Comparison) -> list[str]:
    return [*map(_line, found.changes), *_facts(found)]


def _facts(found: Comparison) -> list[str]:
    better = sum(change.better for change in found.changes)
    worse = len(found.changes) - better
    return [
        *(f"worse: {row} could not be made in B" for row in found.failed),
        f"{better} better, {worse} worse, of {found.matched} rows in both",
        f"{found.compared} pairs of intervals compared; of equal ones 2.5 % seem worse by chance "
        f"(here at most {0.025 * found.compared:.1f})",
        *_listed("only in A", found.only_before),
        *_listed("only in B", found.only_after),
        *(f"not compared: {said}" for said in found.uncompared),
        *(f"warning: not a fair comparison: {said}" for said in found.warnings),
    ]


def _listed(where: str, rows: Sequence[str]) -> list[str]:
    more = [f"{where}: {len(rows) - LISTED} more"] if len(rows) > LISTED else []
    return [*(f"{where}: {row}" for row in rows[:LISTED]), *more]


def _annotations(found: Comparison) -> tuple[tuple[Level, str], ...]:
    worse = [_line(change) for change in found.changes if not change.better]
    worse += [f"worse: {row} could not be made in B" for row in found.failed]
    said: list[tuple[Level, str]] = [("error", line) for line in worse[: MOST - 1]]
    if left := len(worse) - len(said):
        said.append(("error", f"{left} more got worse; see the summary of this job"))
    doubts = _listed("only in A", found.only_before)
    doubts += [f"not compared: {u}" for u in found.uncompared]
    doubts += [f"not a fair comparison: {w}" for w in found.warnings]
    said += [("warning", doubt) for doubt in doubts[:MOST]]
    return (*said, ("notice", f"{_verdict(found)}; {_facts(found)[len(found.failed)]}"))


def _line(change: Change) -> str:
    a, b = _value(change, change.before), _value(change, change.after)
    counts = f"; more than {_share(change.needed)} counts" if _is_share(change) else ""
    kind = "better" if change.better else "worse"
    return f"{kind}: {change.quantity} of {change.defense!r} {a} -> {b}{counts} ({_where(change)})"


def _where(change: Change) -> str:
    several = f"and {len(change.rows) - 1} more" if len(change.rows) > 1 else ""
    return f"{change.rows[0]}{'; ' if several else ''}{several}"


def _is_share(change: Change) -> bool:
    return change.needed > 0 and change.quantity != "bytes"


def _value(change: Change, value: float | None) -> str:
    if value is None:
        return "none"
    if value == math.inf:
        return "unbounded"
    if change.quantity == "bytes":
        return f"{value:,.1f}"
    return f"{value:.4g}" if change.quantity in ("epsilon", "delta") else _share(value)


def _share(value: float) -> str:
    return f"{value:.3f}"
