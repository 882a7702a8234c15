from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation import Failure
from gradguard.evaluation.views.markdown import MOST_ROWS, escape, render_markdown
from tests.evaluation.decisions.reports import judgeable, quiet
from tests.evaluation.examples import certified, informed, row


def rendered(*rows: Any, **changes: Any) -> str:
    return render_markdown(judgeable(*rows, **changes))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_verdict_comes_first() -> None:
    lines = rendered(row()).splitlines()
    assert lines[0] == "## gradguard report"
    assert lines[2].startswith("**The one defence leaks")


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    hostile = row(defense="a|b\\|c", worst_attack="x|y", attacks={**row().attacks})
    text = rendered(hostile, quiet(), certified(), quiet(stage="trained"))
    tables = [[]]  # type: list[list[str]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    tables = [lines for lines in tables if lines]
    assert len(tables) == 2
    for lines in tables:
        assert len({len(cells(line)) for line in lines}) == 1


def test_a_defence_is_shown_by_the_row_in_which_it_leaks_most() -> None:
    most = row(stage="trained", advantage=0.9, advantage_ci=(0.8, 1.0), worst_attack="EBI")
    text = rendered(quiet(), most)
    compact = text[: text.index("<details>")]
    assert compact.count("\n| top-k 1 % |") == 1
    assert "EBI, on a trained model" in compact
    assert "<summary>All 2 rows</summary>" in text
    assert text.count("<details>") == text.count("</details>") == 1


def test_tones_are_words() -> None:
    assert "| **leaks** |" in rendered(row())
    assert "| unclear |" in rendered(row(advantage_ci=(-0.2, 0.6)))
    assert "| no leak seen |" in rendered(quiet(advantage_ci=(-0.01, 0.01)))


def test_failures_warnings_and_what_was_not_run_are_said() -> None:
    failure = Failure(
        defense="b|ad", composition="iid", stage="init", batch_size=8, rounds=5, why="no\nmemory"
    )
    report = judgeable(quiet(skipped={"RLG": "no bias"}), failures=(failure,), complete=False)
    report.provenance["warnings"] = ["attack too weak here"]
    text = render_markdown(report)
    assert "- b\\|ad (init, iid, B = 8, 5 rounds): no memory" in text
    assert "1 of 2 rows could not be made" in text
    assert "- Warning: attack too weak here." in text
    assert "- RLG was not run: no bias." in text
    assert "Interrupted" in text


def test_a_failed_row_is_in_no_table() -> None:
    failure = Failure(defense="gone", composition="iid", stage="init", batch_size=8, why="why")
    text = rendered(quiet(), failures=(failure,))
    assert not any("gone" in line for line in text.splitlines() if line.startswith("|"))


def test_how_it_was_measured_takes_two_lines() -> None:
    text = rendered(informed(0.4, 0.5, 0.6, 0.7))
    assert len([line for line in text.splitlines() if line.startswith("<sub>")]) == 2
    assert "100 scored" in text
    assert "a lower bound on what leaks" in text


def test_a_report_of_many_rows_still_fits_a_comment() -> None:
    text = rendered(*(quiet(batch_size=i) for i in range(1, 1001)))
    assert f"{1000 - MOST_ROWS} more rows" in text
    assert len(text) < 65_536


HOSTILE = {
    "<script>alert(1)</script>": "<script",
    "![x](https://example.com/x.png)": "![x](",
    "[a](javascript:b)": "[a](",
    "@maintainer": "@maintainer",
    "closes #12": "#12",
    "owner/repository#3": "#3",
    "GH-12": "GH-12",
    "https://example.com": "://",
    "www.example.com": "www.example",
    "a|b": " a|b",
    "`code`": " `code",
    "$x^2$": " $x",
    "&lt;b&gt;": " &lt;b",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_names_call_nobody_and_are_no_markup(name: str) -> None:
    text = rendered(row(defense=name), quiet(defense=name, stage="trained", skipped={name: name}))
    assert HOSTILE[name] not in text


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    assert "<" not in shown
    assert ">" not in shown
    for mark in "`*_[]|$!":
        assert not re.search(r"(?<!\\)(\\\\)*" + re.escape(mark), shown)
    assert not re.search(r"@(?!&#8203;)", shown)
    assert not re.search(r"(?<!&)#(?!&#8203;)", shown)


@given(st.text("ab_*|\\<>&@#-:/ .", max_size=30))
def test_escaped_text_reads_as_it_was(text: str) -> None:
    shown = re.sub(r"\\([\\`*_{}\[\]~|$!])", r"\1", escape(text)).replace("&#8203;", "")
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    assert shown == " ".join(text.split())
