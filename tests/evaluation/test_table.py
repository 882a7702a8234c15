from __future__ import annotations

import io

from rich.console import Console

from gradguard.evaluation.table import PIPE_WIDTH, print_report
from tests.evaluation.examples import report, row


def printed(*rows: object, **changes: object) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=PIPE_WIDTH, highlight=False)
    print_report(report(*rows, **changes), console)  # type: ignore[arg-type]
    return stream.getvalue()


def test_a_row_fits_a_hundred_columns_without_losing_a_number() -> None:
    long = row(defense="a defence with quite a long name", worst_attack="TemplateRegression(head)")
    text = printed(long)
    assert all(len(line) <= PIPE_WIDTH for line in text.splitlines())
    for shown in ("90 (88-92)", "70 (65-75)", "40", "50", "TemplateRegression(head)"):
        assert shown in text
    assert "An untrained model, skewed batches of 8" in text


def test_names_are_not_taken_for_markup() -> None:
    assert "[red]x[/red]" in printed(row(defense="[red]x[/red]", worst_attack="[b]"))


def test_divergence_skipped_attacks_and_interruption_are_said() -> None:
    text = printed(row(diverged=True, skipped={"LLG+": "no bias"}), complete=False)
    assert "diverged" in text
    assert "LLG+ was not run: no bias" in text
    assert "Interrupted" in text
