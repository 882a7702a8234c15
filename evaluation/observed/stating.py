"""What was read of recorded traffic in words: a terminal's table, and Markdown."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradguard.evaluation.errors import printable
from gradguard.evaluation.observed.result import (
    FEW,
    LEAKS,
    NOT_MEASURED,
    NOT_SHOWN,
    ObservedReport,
    ObservedRow,
)
from gradguard.evaluation.views.markdown import escape, table
from gradguard.evaluation.views.placing import short
from gradguard.evaluation.views.sentences import percent

WHOLE = ("all", "pooled", "cohort")
"""Views of the whole recording."""
ROWS = 12
"""Rounds or clients on a terminal; all of them are in the files."""
COLUMNS = (
    "seen",
    "messages",
    "worst attack",
    "labels read, %",
    "blind, %",
    "above blind",
    "verdict",
)


def print_observed(report: ObservedReport, console: Console) -> None:
    """The rows, what to know beside them, and a closing sentence."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(COLUMNS):
        names = column in ("seen", "worst attack")
        words = column.replace(", ", ",\n") if index else column
        shown.add_column(words, justify="left" if names else "right", no_wrap=not names)
    cut = 0
    for view in ("all", "pooled", "cohort", "round", "client"):
        rows = report.of_view(view)
        # Of many the ones that leak most: the files have the rest.
        ranked = sorted(rows, key=lambda row: -row.shown.advantage)[:ROWS]
        cut += len(rows) - len(ranked)
        for row in (row for row in rows if row in ranked):
            shown.add_row(*(Text(printable(cell)) for cell in cells(row)))
    if cut:
        shown.caption = f"{cut} more rows, which leak less, are in observed.md"
    console.print(shown)
    for line in remarks(report):
        console.print(Text(printable(line)))
    console.print(Text(closing(report), style="bold"))


def cells(row: ObservedRow) -> tuple[str, ...]:
    """One row of the table, in the order of :data:`COLUMNS`."""
    worst = row.shown
    number = f"{row.messages}"
    if row.independent < row.messages:
        number += f" ({row.independent})"
    return (
        seen_words(row),
        number,
        row.shown_attack,
        f"{100 * worst.asr:.0f} ({100 * worst.ci[0]:.0f} to {100 * worst.ci[1]:.0f})",
        f"{100 * row.blind_asr:.0f}",
        f"{worst.advantage:.2f} ({worst.advantage_ci[0]:.2f} to {worst.advantage_ci[1]:.2f})",
        row.verdict,
    )


def seen_words(row: ObservedRow) -> str:
    """What a row is about, in a few words."""
    low, high = row.cohort
    return {
        "all": "each alone",
        "round": f"round {row.of}",
        "client": f"client {short(row.of)}",
        "pooled": "rounds pooled",
        "cohort": f"mean of {low if low == high else f'{low} to {high}'} clients",
    }[row.view]


def remarks(report: ObservedReport) -> list[str]:
    """What to know beside the numbers, line by line."""
    said = [
        f"Recorded: {report.messages} messages of {report.clients} clients in {report.rounds} "
        f"rounds, defence {report.defense!r}."
    ]
    if report.without_labels:
        said.append(f"{report.without_labels} messages have no labels recorded: not scored.")
    if report.refused:
        said.append(f"{report.refused} messages could not be read by the server: not here.")
    said += [f"Not attacked, {view}: {why}." for view, why in report.left_out.items()]
    said += [f"Note: {note}." for note in report.notes]
    said += _about_intervals(report)
    said += _about_likeness(report)
    if not report.complete:
        said.append("Interrupted: later rounds are missing.")
    return said


def _about_intervals(report: ObservedReport) -> list[str]:
    said = []
    if any(row.independent < row.messages for row in report.rows):
        said.append(
            "In brackets beside messages: how many are about different labels. A client with the "
            "same data in every round is one observation, however often it sends; in its own row, "
            "which is about those data alone, every message is one."
        )
    few = [row for row in report.rows if row.independent < FEW]
    if few:
        least = min(row.independent for row in few)
        said.append(
            f"{len(few)} of {len(report.rows)} rows rest on fewer than {FEW} observations (the "
            f"least on {least}): their intervals are wide. Record more rounds or clients."
        )
    return said


def _about_likeness(report: ObservedReport) -> list[str]:
    odd = [row for row in report.rows if row.unlike]
    said = [_unlike_whole(row) for row in odd if row.view in WHOLE]
    parts = [row for row in odd if row.view not in WHOLE and row.alarming]
    if parts and not any(row.alarming for row in odd if row.view in WHOLE):
        named = ", ".join(
            f"{seen_words(row)} ({row.unlike} of {row.messages})" for row in parts[:5]
        )
        said.append(
            f"Too many unlike all simulated messages: {named}{', ...' if len(parts) > 5 else ''}. "
            "A low rate there is no evidence of safety."
        )
    return said


def _unlike_whole(row: ObservedRow) -> str:
    found = (
        f"{row.unlike} of {row.messages} messages ({seen_words(row)}) are unlike all simulated "
        f"ones ({row.example})."
    )
    if not row.alarming:
        return f"{found} So few may be so by chance; the verdict takes them for read whole."
    return (
        f"Warning: {found} The simulated client is not the recorded one, or not that of all "
        "messages: check [client], the defence and the model. A low rate is no evidence of safety."
    )


def closing(report: ObservedReport) -> str:
    """The verdict in one or two sentences.

    Rows of single rounds and clients are many, and by chance one in forty seems to leak: alone they
    decide nothing.
    """
    wholes = [row for row in report.rows if row.view in WHOLE]
    leaky = [row for row in wholes if row.verdict == LEAKS]
    if leaky:
        worst = max(leaky, key=lambda row: row.shown.advantage_ci[0])
        return (
            f"Labels leak: {worst.shown_attack} reads {percent(worst.shown.asr)} of those behind "
            f"recorded messages ({seen_words(worst)}), where a blind guess gets "
            f"{percent(worst.blind_asr)}."
        )
    if any(not row.looking for row in wholes):
        return "Not measured: no attack that looks at messages could be mounted on all of them."
    if any(row.verdict == NOT_MEASURED for row in wholes):
        return (
            "Not measured: too many recorded messages are unlike the simulated ones, so that "
            "nothing here says that the labels are safe."
        )
    parts = [row for row in report.rows if row.view not in WHOLE]
    odd = [seen_words(row) for row in parts if row.verdict == LEAKS]
    if odd:
        return (
            f"Unclear: of {len(parts)} rounds and clients {len(odd)} seem to leak by themselves "
            f"({odd[0]} is one), and chance alone makes about one in forty. Record more messages "
            "to tell."
        )
    if all(row.verdict == NOT_SHOWN for row in wholes):
        return "Not shown to leak, which is no proof."
    return "Unclear: more may leak than chance explains. Record more messages to tell."


def render_observed(report: ObservedReport) -> str:
    """The whole report as Markdown."""
    lines = ["# What the server saw", "", escape(closing(report)), ""]
    lines += [f"- {escape(line)}" for line in remarks(report)]
    body = [[escape(cell) for cell in cells(row)] for row in report.rows]
    lines += ["", table(COLUMNS, body), "", escape(str(report.provenance.get("method", "")))]
    return "\n".join(lines) + "\n"
