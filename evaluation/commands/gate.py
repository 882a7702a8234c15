"""``gradguard gate``: may this defence pass?"""

from __future__ import annotations

import math
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
from gradguard.evaluation.decisions.gate import Finding, Verdict, judge
from gradguard.evaluation.decisions.judgeable import read_judgeable
from gradguard.evaluation.errors import printable
from gradguard.evaluation.views.markdown import escape, table

TITLE = "gradguard gate"
_WORDS = {
    "advantage": ("advantage up to", "allowed"),
    "accuracy": ("accuracy down to", "wanted"),
    "epsilon": ("epsilon", "allowed"),
}


def command(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="A report.json, or the folder that holds it.")
    ],
    defense: Annotated[str, typer.Option(metavar="NAME", help="The defence to judge.")],
    max_advantage: Annotated[
        float, typer.Option(metavar="X", help="Over a blind guess: 0 is nothing, 1 every label.")
    ],
    min_accuracy: Annotated[
        float | None, typer.Option(metavar="Y", help="Of training with it, from 0 to 1.")
    ] = None,
    max_epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="Fails without differential privacy.")
    ] = None,
    form: Annotated[Format, FormatOption] = Format.TEXT,
) -> None:
    """Judge a defence by the bad end of every interval of a report.

    Exit code 0: every row keeps to the limits. 1: one does not. 2: it cannot be judged, as where
    rows are missing or failed, training diverged, or the report is damaged.
    """
    with refusals_stated(title=TITLE, form=form):
        verdict = judge(
            read_judgeable(report),
            defense=defense,
            max_advantage=max_advantage,
            min_accuracy=min_accuracy,
            max_epsilon=max_epsilon,
        )
    said = Statement(
        text=words(verdict),
        table={"command": "gate"} | verdict.to_dict(),
        annotations=(("notice" if verdict.holds else "error", words(verdict)),),
        markdown=summary(verdict),
    )
    state(said, title=TITLE, form=form)
    raise typer.Exit(0 if verdict.holds else 1)


def words(verdict: Verdict) -> str:
    """A few lines: the verdict, the deciding row of every limit, and what to know beside it.

    >>> from gradguard.evaluation.decisions.gate import Limits
    >>> from gradguard.evaluation.decisions.judgeable import Conditions
    >>> where = Conditions("init", "iid", 8)
    >>> found = Finding(quantity="advantage", where=where, found=0.55, limit=0.2, attack="LLG")
    >>> print(
    ...     words(
    ...         Verdict(defense="sign", limits=Limits(max_advantage=0.2), findings=(found,))
    ...     )
    ... )
    gradguard gate: 'sign' FAILS
      fails: advantage up to 0.550, 0.2 allowed, 0.350 beyond (LLG; init, iid, B = 8)
      1 row judged by the bad end of its interval
    """
    count = len({finding.where for finding in verdict.findings})
    lines = [f"{TITLE}: {printable(repr(verdict.defense))} {'HOLDS' if verdict.holds else 'FAILS'}"]
    lines += [f"  {printable(_line(finding))}" for finding in verdict.deciding]
    rows = "1 row judged by the bad end of its interval"
    if count != 1:
        rows = (
            f"{count} rows judged, each by the bad end of its interval; the deciding one is shown"
        )
    return "\n".join(
        [*lines, f"  {rows}", *(f"  note: {printable(note)}" for note in verdict.notes)]
    )


def summary(verdict: Verdict) -> str:
    """The same as Markdown, with a table of the deciding rows."""
    said = "holds" if verdict.holds else "**fails**"
    body = [
        [
            "holds" if finding.holds else "**fails**",
            *(finding.quantity, _found(finding), f"{finding.limit:g}", _off(finding)),
            escape(_where(finding)),
        ]
        for finding in verdict.deciding
    ]
    head = ["verdict", "limit on", "bad end", "limit", "how far off", "deciding row"]
    notes = "".join(f"\n- {escape(note)}" for note in verdict.notes)
    title = f"### {TITLE}: {escape(verdict.defense)} {said}"
    return f"{title}\n\n{table(head, body, text=2)}\n{notes}"


def _line(finding: Finding) -> str:
    leads, verb = _WORDS[finding.quantity]
    said = "holds" if finding.holds else "fails"
    limit = f"{finding.limit:g} {verb}"
    return f"{said}: {leads} {_found(finding)}, {limit}, {_off(finding)} ({_where(finding)})"


def _where(finding: Finding) -> str:
    return f"{finding.attack}; {finding.where}" if finding.attack else str(finding.where)


def _found(finding: Finding) -> str:
    if finding.found is None:
        return "none (no differential privacy)"
    # Rounded towards the bad end: a number must not look like one that holds.
    return _rounded(finding.found, up=finding.quantity != "accuracy")


def _off(finding: Finding) -> str:
    if not finding.room > -math.inf:
        return "beyond any"
    if finding.holds:
        return f"{_rounded(finding.room, up=False)} to spare"
    return f"{_rounded(-finding.room, up=True)} beyond"


def _rounded(value: float, *, up: bool) -> str:
    if value == math.inf:
        return "unbounded"
    scaled = 1000 * value
    # Less the last bits: 0.55 is to be 0.550 and not 0.551.
    whole = math.ceil(scaled - 1e-7) if up else math.floor(scaled + 1e-7)
    return f"{whole / 1000:.3f}"
