"""Rounds are conditions of their own wherever a report is shown."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from gradguard.evaluation.certificates.law import broken_certificates, promise_alone
from gradguard.evaluation.report import Report
from gradguard.evaluation.views.html import render_html
from gradguard.evaluation.views.sentences import cell_words, sentences
from gradguard.evaluation.views.table import by_cell, print_report
from tests.evaluation.examples import certified, report, row

ONCE, POOLED = row(), row(rounds=20)


def test_rounds_have_tables_of_their_own() -> None:
    assert by_cell(report(ONCE, POOLED)) == [[ONCE], [POOLED]]
    assert cell_words(ONCE) == "an untrained model, skewed batches of 8"
    assert cell_words(POOLED) == "an untrained model, skewed batches of 8, 20 rounds of each"
    console = Console(file=io.StringIO(), width=100)
    print_report(report(ONCE, POOLED), console)
    assert isinstance(console.file, io.StringIO)
    assert "skewed batches of 8, 20 rounds of each" in console.file.getvalue()


def test_the_page_has_a_column_of_rounds_only_where_there_are_several() -> None:
    assert ">rounds</button>" not in render_html(report(ONCE))
    assert ">rounds</button>" in render_html(report(ONCE, POOLED))


def test_a_sentence_says_over_how_many_rounds_labels_were_read() -> None:
    (once,) = sentences(report(ONCE)).values()
    (pooled,) = sentences(report(POOLED)).values()
    assert "rounds" not in once
    assert "on an untrained model, 20 rounds of each, where" in pooled


def test_what_is_promised_and_what_breaks_it_names_the_rounds() -> None:
    once = certified()
    several = replace(once, rounds=20, worst_asr=1.0)
    assert "Whoever sees one message from" in (promise_alone(once) or "")
    assert "Whoever sees the 20 messages of as many rounds from" in (promise_alone(several) or "")
    (sentence,) = sentences(report(several)).values()
    assert "from all 20 messages of iid batches of 8" in sentence
    broken = replace(
        several, attacks={"LLG": replace(several.attacks["LLG"], asr=1.0, ci=(0.99, 1.0))}
    )
    (warning,) = broken_certificates([broken])
    assert "B = 8, 20 rounds)" in warning


def test_a_report_from_before_there_were_rounds_is_of_one() -> None:
    text = report(ONCE).to_json().replace('"rounds": 1,', "")
    assert Report.from_json(text).rows == (ONCE,)
