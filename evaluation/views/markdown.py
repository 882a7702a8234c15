"""The report for a pull request: what a reviewer needs on one screen, the rest folded away."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gradguard.evaluation.certificates.law import epsilon_up
from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.views.sentences import (
    by_defense,
    cell_words,
    closing_line,
    failed_line,
    knowledge_line,
    tone,
    worst_row,
)
from gradguard.evaluation.views.table import accuracy_text, behind, size_text, with_interval

MOST_ROWS = 200
"""Rows in the folded table: a comment on GitHub holds 65,536 characters."""

TONES = {"leaks": "**leaks**", "unclear": "unclear", "quiet": "no leak seen"}

_MARKS = re.compile(r"([\\`*_{}\[\]~|$!])")
# What GitHub makes a mention, an issue, a closed issue or an address of. It looks for these after
# backslashes and entities are resolved, so only a character between the two halves helps.
_REFERENCES = re.compile(r"(@|#|(?i:\bGH)(?=-)|(?i:\bwww(?=\.))|:(?=//))")
_SPACE = "&#8203;"


def render_markdown(report: Report) -> str:
    """The report as GitHub's Markdown: verdict, one row per defence, failures, warnings, method.

    Guarantees:

    - a row that failed is in the list of failures and in no table;
    - what is in a name, a reason or a warning is shown as text: it ends no cell, starts no tag,
      and calls nobody;
    - of every defence the row is shown in which it leaks most; all rows are folded below.

    >>> from gradguard.evaluation import Failure
    >>> failure = Failure(
    ...     defense="a|b", composition="iid", stage="init", batch_size=8, why="no @memory"
    ... )
    >>> print(render_markdown(Report({}, (), {}, True, (failure,))))
    ## gradguard report
    <BLANKLINE>
    **No row was finished.**
    <BLANKLINE>
    1 of 1 rows could not be made: they have no number at all, which is no low one.
    <BLANKLINE>
    - a\\|b (init, iid, B = 8): no @&#8203;memory
    <BLANKLINE>
    """
    parts = [
        "## gradguard report",
        f"**{escape(closing_line(report))}**",
        _interrupted(report),
        _summary(report),
        _failures(report),
        _warnings(report),
        _all_rows(report),
        _measured(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    >>> print(escape("<b>|@you #1 a_b"))
    &lt;b&gt;\\|@&#8203;you #&#8203;1 a\\_b
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # First the spaces, whose own number sign is not one of the text's.
    parts = _REFERENCES.split(_MARKS.sub(r"\\\1", line))
    return "".join(part + _SPACE if i % 2 else part for i, part in enumerate(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> str:
    """A table of cells that are Markdown already; all but the first ``text`` columns are numbers.

    >>> print(table(["defence", "%"], [["sign", "3"]]))
    | defence | % |
    |:--|--:|
    | sign | 3 |
    """
    sides = [":--" if i < text else "--:" for i in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(sides)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _interrupted(report: Report) -> str:
    return "" if report.complete else "Interrupted: only the finished rows are shown."


def _summary(report: Report) -> str:
    worst = [worst_row(rows) for rows in by_defense(report).values()]
    if not worst:
        return ""
    private = any(row.epsilon is not None for row in worst)
    head = ["defence", "verdict", "accuracy %", "bytes", "labels read %", "blind %", "advantage %"]
    head += ["epsilon"] * private
    body = [[*_cells(row, private), escape(_leaks_most(row))] for row in worst]
    return table([*head, "leaks most"], body, text=2)


def _leaks_most(row: Row) -> str:
    return f"{row.worst_attack}, on {cell_words(row)}"


def _cells(row: Row, private: bool) -> list[str]:
    cells = [
        *(escape(row.defense), TONES[tone(row)], accuracy_text(row)),
        *(size_text(row.bytes_per_update), with_interval(row.worst_asr, row.worst_ci)),
        *(f"{100 * row.blind_asr:.0f}", _advantage(row)),
    ]
    return cells + [escape(epsilon_up(row))] * private


def _advantage(row: Row) -> str:
    # "to", as either end may have a minus sign.
    low, high = row.advantage_ci
    return f"{100 * row.advantage:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def _failures(report: Report) -> str:
    if (line := failed_line(report)) is None:
        return ""
    rows = [
        f"- {escape(failed.defense)} ({escape(failed.stage)}, {escape(failed.composition)}, "
        f"B = {failed.batch_size}{f', {failed.rounds} rounds' if failed.rounds > 1 else ''}): "
        f"{escape(failed.why)}"
        for failed in report.failures
    ]
    return f"{escape(line)}\n\n" + "\n".join(rows)


def _warnings(report: Report) -> str:
    skipped = sorted({(name, why) for row in report.rows for name, why in row.skipped.items()})
    said = [f"Warning: {warning}." for warning in report.provenance.get("warnings", [])]
    said += [f"{name} was not run: {why}." for name, why in skipped]
    return "\n".join(f"- {escape(sentence)}" for sentence in said)


def _all_rows(report: Report) -> str:
    rows, defenses = report.rows, by_defense(report)
    if len(rows) <= len(defenses):
        return ""
    private = any(row.epsilon is not None for row in rows)
    head = ["defence", "verdict", "accuracy %", "bytes", "labels read %", "blind %", "advantage %"]
    head += ["epsilon"] * private
    body = [
        [*_cells(row, private), escape(row.worst_attack), escape(cell_words(row))]
        for row in rows[:MOST_ROWS]
    ]
    left = len(rows) - len(body)
    more = f"\n\n{left} more rows are in report.html and report.json." if left else ""
    shown = table([*head, "read best by", "conditions"], body, text=2)
    return f"<details><summary>All {len(rows)} rows</summary>\n\n{shown}{more}\n\n</details>"


def _measured(report: Report) -> str:
    """How it was measured, in two lines."""
    if not report.rows:
        return ""
    lines = [f"Measured on {behind(report)}"]
    known = knowledge_line(report)
    promise = "Every figure is what these attackers achieve: a lower bound on what leaks."
    lines.append(f"{known} {promise}" if known else promise)
    return "\n".join(f"<sub>{escape(line)}</sub><br>" for line in lines)
