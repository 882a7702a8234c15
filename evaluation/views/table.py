"""The report on a terminal: one table per set of conditions, readable in a pipe as well."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradguard.evaluation.certificates.law import epsilon_up, percent_up
from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.views.plotly_script import charts_hint
from gradguard.evaluation.views.sentences import (
    cell_words,
    closing_line,
    failed_line,
    failed_words,
    knowledge_line,
    tone,
)
from gradguard.evaluation.views.workflow_commands import harmless

PIPE_WIDTH = 106
"""Columns where the output is no terminal; rich would take 80 and cut names."""

STYLES = {"leaks": "red", "unclear": "yellow", "quiet": "green"}


def make_console(*, stderr: bool = False) -> Console:
    """A console that keeps lines whole in a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        # Where the encoding is ASCII, a name that is not must not cost the whole table.
        stream.reconfigure(errors="backslashreplace")
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal:
        return console
    return Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def print_report(report: Report, console: Console) -> None:
    """Print the tables, how much lies behind them, and one plain closing line."""
    for rows in by_cell(report):
        console.print(_table(rows))
        if any(row.certificate is not None for row in rows):
            console.print(_certified(rows))
        console.print()
    skipped = sorted({(name, why) for row in report.rows for name, why in row.skipped.items()})
    for name, why in skipped:
        console.print(_line(f"{name} was not run: {why}", style="yellow"))
    for failure in report.failures:
        console.print(_line(f"{failed_words(failure)}.", style="yellow"))
    if (failed := failed_line(report)) is not None:
        console.print(_line(failed, style="yellow"))
    for warning in report.provenance.get("warnings", []):
        console.print(_line(f"Warning: {warning}.", style="yellow"))
    if any(row.certificate is not None for row in report.rows):
        console.print(_line(f"Certificates: {report.provenance.get('certificates', '')}."))
    if (known := knowledge_line(report)) is not None:
        console.print(_line(known))
    console.print(_line(behind(report), style="dim"))
    if (hint := charts_hint()) is not None:
        console.print(_line(f"In report.html, {hint}.", style="dim"))
    if not report.complete:
        console.print(_line("Interrupted: only the finished rows are shown.", style="yellow"))
    console.print(_line(closing_line(report), style="bold"))


def _line(text: str, style: str = "") -> Text:
    """Names and reasons are data: they are no markup, and neither steer a terminal nor a job."""
    return Text(harmless(text), style=style)


def by_cell(report: Report) -> list[list[Row]]:
    """Rows by their conditions, in the order of the study."""
    grouped: dict[tuple[str, str, int, int], list[Row]] = {}
    for row in report.rows:
        conditions = (row.stage, row.composition, row.batch_size, row.rounds)
        grouped.setdefault(conditions, []).append(row)
    return list(grouped.values())


def behind(report: Report) -> str:
    """How many batches, seeds and seconds the numbers rest on."""
    facts = report.provenance
    counts, models = facts["batches_per_row"], facts["models_attacked"]
    simulated = counts["simulated_per_seed"]
    learned = f", learned from {simulated} simulated ones" if simulated else ""
    return (
        f"{facts['data']['name']}: {report.study['training']['seeds']} training runs per defence; "
        f"{models} model{'s' * (models != 1)} attacked, on {counts['scored']} scored and "
        f"{counts['calibration']} calibration batches per row{learned}; 95 % intervals; "
        f"{facts['wall_seconds']:.0f} s."
    )


def _table(rows: Sequence[Row]) -> Table:
    words = cell_words(rows[0])
    table = Table(
        title=_line(words[0].upper() + words[1:], style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("defence", no_wrap=True, overflow="ellipsis", max_width=28)
    # Minimum widths: where the terminal is narrow, rich is to cut names and never numbers.
    sizes = (("bytes\nsent", 5),) if any(row.bytes_per_update for row in rows) else ()
    for name, width in (
        *(("accuracy\n%", 11), *sizes, ("labels\nread %", 12)),
        *(("blind\n%", 5), ("advan-\ntage %", 6)),
    ):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    table.add_column("read best by", no_wrap=True, overflow="ellipsis")
    for row in rows:
        style = STYLES[tone(row)]
        table.add_row(
            _line(row.defense),
            accuracy_text(row),
            *([size_text(row.bytes_per_update)] if sizes else []),
            Text(with_interval(row.worst_asr, row.worst_ci), style=style),
            f"{100 * row.blind_asr:.0f}",
            Text(f"{100 * row.advantage:.0f}", style=style),
            _line(row.worst_attack),
        )
    return table


def _certified(rows: Sequence[Row]) -> Table:
    """What is proven beside what was measured, for the same rows."""
    table = Table(
        title=Text("Proven, against every attacker", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("defence", no_wrap=True, overflow="ellipsis", max_width=28)
    for name, width in (
        *(("labels\nread %", 12), ("labels\nat most %", 9), ("one label\nat most %", 9)),
        ("epsilon\nof a training run", 22),
    ):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        both, one = certified_text(row)
        table.add_row(
            _line(row.defense),
            with_interval(row.worst_asr, row.worst_ci),
            both,
            one,
            epsilon_up(row),
        )
    return table


def certified_text(row: Row) -> tuple[str, str]:
    """Bounds on the share of a batch's labels and on one label, or ``"none"`` for both."""
    found = row.certificate
    if found is None:
        return "none", "none"
    return _bound(found["multiset"]["value"]), _bound(found["value"])


def _bound(share: float) -> str:
    return percent_up(share).removesuffix(" %")


def accuracy_text(row: Row) -> str:
    """Accuracy in percent with half the width of its interval, or that training diverged."""
    if row.diverged:
        return "diverged"
    if row.accuracy_ci is None:
        return f"{100 * row.accuracy:.0f}"
    return with_interval(row.accuracy, row.accuracy_ci)


def size_text(size: float | None) -> str:
    """A number of bytes in at most five characters; those not measured are a dash.

    >>> [size_text(n) for n in (None, 42, 999.6, 38440, 102_228_128)]
    ['-', '42', '1k', '38.4k', '102M']
    """
    if size is None:
        return "-"
    unit = ""
    for larger in "kMGT":
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g}{unit}"


def with_interval(value: float, interval: Interval) -> str:
    """A share and its interval in percent.

    >>> with_interval(0.97, (0.951, 0.984))
    '97 (95-98)'
    """
    low, high = interval
    return f"{100 * value:.0f} ({100 * low:.0f}-{100 * high:.0f})"
