from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from gradguard.evaluation.report import Failure
from gradguard.evaluation.views.table import PIPE_WIDTH, print_report
from tests.evaluation.examples import certified, informed, report, row


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


def test_bytes_sent_are_shown_where_they_were_measured() -> None:
    text = printed(row(bytes_per_update=38_440.25), row(bytes_per_update=None))
    assert "38.4k" in text
    assert "bytes" not in printed(row(bytes_per_update=None))


def test_divergence_skipped_attacks_and_interruption_are_said() -> None:
    text = printed(row(diverged=True, skipped={"LLG+": "no bias"}), complete=False)
    assert "diverged" in text
    assert "LLG+ was not run: no bias" in text
    assert "Interrupted" in text


def test_what_is_proven_stands_beside_what_was_measured() -> None:
    long = "DP-SGD with a name that is far too long for any table"
    text = printed(row(composition="iid"), certified(defense=long, epsilon=123.456))
    assert all(len(line) <= PIPE_WIDTH for line in text.splitlines())
    proven = text[text.index("Proven, against every attacker") :]
    assert "123.46 at delta 1e-05" in proven
    assert "69.5" in proven  # of a batch's labels
    assert "15.2" in proven  # of one record's label, rounded up
    (undefended,) = [line for line in proven.splitlines() if line.startswith(" top-k 1 %")]
    assert undefended.split()[-3:] == ["none", "none", "none"]


def test_without_differential_privacy_nothing_is_said_of_proofs() -> None:
    assert "Proven" not in printed(row())
    assert "ertificate" not in printed(row())


def test_whether_the_certificates_hold_is_said() -> None:
    facts = report(row()).provenance | {"certificates": "no attack exceeds a certificate"}
    text = printed(certified(), provenance=facts)
    assert "Certificates: no attack exceeds a certificate." in text


def test_what_is_read_by_knowledge_is_one_line_of_means_over_the_rows() -> None:
    text = printed(informed(0.4, 0.5, 0.6, 0.7), informed(0.6, 0.7, 0.8, 0.9), row())
    (line,) = [line for line in text.splitlines() if line.startswith("Mean labels read")]
    assert line == (
        "Mean labels read: gradient 50 %, + model 60 %, + auxiliary data 70 %, + defence 80 %; "
        "blind 40 %."
    )
    assert "Mean labels read" not in printed(row())


def test_without_plotly_the_terminal_says_what_the_page_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "plotly" not in printed(row())
    monkeypatch.setitem(sys.modules, "plotly", None)
    text = printed(row())
    assert "interactive charts need plotly: pip install 'gradguard[report]'" in text


def test_rows_that_could_not_be_made_are_shown_with_their_reason() -> None:
    failed = Failure(defense="odd", composition="iid", stage="init", batch_size=4, why="too [big]")
    text = printed(row(), failures=(failed,))
    assert "odd (an untrained model, iid batches of 4) could not be made: too [big]." in text
    assert "1 of 2 rows could not be made" in text
    assert "No row was finished." in printed(failures=(failed,))


@pytest.mark.parametrize("start", ["", "a b ", "x" * PIPE_WIDTH, "x " * (PIPE_WIDTH // 2)])
def test_no_text_steers_a_terminal_or_a_job(start: str) -> None:
    nasty = f"{start}::error::x\x1b[2J\x1b]0;title\x07\r\n::error::y\u2028##[error]z ##vso[a]b"
    failed = Failure(defense=nasty, composition=nasty, stage=nasty, batch_size=4, why=nasty)
    bad = row(
        **{"defense": nasty, "composition": nasty, "stage": nasty, "worst_attack": nasty},
        skipped={nasty: nasty},
    )
    facts = report().provenance | {"warnings": [nasty], "certificates": nasty}
    facts |= {"data": {"name": nasty}}
    text = printed(bad, certified(defense=nasty), failures=(failed,), provenance=facts)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert "::" not in text
    assert "##" not in text
    assert ": :error: :x" in " ".join(text.split())
