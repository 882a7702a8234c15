"""What is said of recorded traffic: never more than the rows show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradguard.evaluation.observed.result import (
    LEAKS,
    NOT_MEASURED,
    NOT_SHOWN,
    UNCLEAR,
    ObservedReport,
    ObservedRow,
    ObservedScore,
)
from gradguard.evaluation.observed.stating import closing, remarks, render_observed


def row(
    low: float, high: float, *, view: str = "all", of: str = "", blind_high: float = 0.0
) -> ObservedRow:
    """A row whose worst attack's advantage has these ends."""
    blind = ObservedScore(0.4, (0.3, 0.5), 0.0, (0.0, blind_high), 0.0)
    worst = ObservedScore(0.6, (0.5, 0.7), (low + high) / 2, (low, high), low)
    return ObservedRow(
        view=view,
        of=of,
        messages=30,
        independent=30,
        batch_sizes=(8, 8),
        attacks={"BestConstant": blind, "LLG": worst},
        skipped={},
        worst_attack="LLG",
        blind_asr=0.4,
    )


def report(*rows: ObservedRow) -> ObservedReport:
    return ObservedReport(
        study={},
        defense="top-k",
        rows=rows,
        rounds=3,
        clients=10,
        messages=30,
        without_labels=0,
        refused=0,
    )


QUIET, LOUD, OPEN = row(-0.1, 0.04), row(0.1, 0.6), row(-0.1, 0.4)


@pytest.mark.parametrize(("found", "verdict"), [(QUIET, NOT_SHOWN), (LOUD, LEAKS), (OPEN, UNCLEAR)])
def test_a_verdict_is_the_whole_intervals(found: ObservedRow, verdict: str) -> None:
    assert found.verdict == verdict


def test_an_attack_that_was_not_chosen_keeps_a_row_from_being_quiet() -> None:
    assert row(-0.1, 0.04, blind_high=0.2).verdict == UNCLEAR


def test_messages_unlike_the_simulated_ones_are_quiet_for_no_reason() -> None:
    assert replace(QUIET, alarming=True).verdict == NOT_MEASURED
    assert replace(OPEN, alarming=True).verdict == NOT_MEASURED
    assert replace(LOUD, alarming=True).verdict == LEAKS


def test_the_closing_line_is_that_of_the_whole_recording() -> None:
    assert closing(report(QUIET)) == "Not shown to leak, which is no proof."
    assert closing(report(QUIET, OPEN)).startswith("Unclear")
    assert closing(report(QUIET, LOUD)).startswith("Labels leak: LLG reads 60 %")
    assert closing(report(QUIET, replace(OPEN, alarming=True))).startswith("Not measured")


def test_one_client_of_many_that_seems_to_leak_is_not_proof_and_not_silence() -> None:
    odd = row(0.1, 0.6, view="client", of="7")
    others = [row(-0.1, 0.04, view="client", of=str(index)) for index in range(39)]
    said = closing(report(QUIET, odd, *others))
    assert said.startswith("Unclear: of 40 rounds and clients 1 seem to leak")
    assert "client 7" in said


def test_an_alarm_about_the_whole_says_what_to_check() -> None:
    odd = replace(QUIET, alarming=True, unlike=30, example="its norm is 9, theirs 1 to 2")
    [warning] = [line for line in remarks(report(odd)) if line.startswith("Warning")]
    assert "30 of 30 messages" in warning
    assert "its norm is 9" in warning
    assert "check [client], the defence and the model" in warning
    single = replace(odd, view="client", of="7")
    [milder] = [line for line in remarks(report(QUIET, single)) if line.startswith("Too many")]
    assert "client 7 (30 of 30)" in milder
    assert "chance" not in milder


def test_another_attack_that_surely_leaks_is_shown_in_place_of_the_worst() -> None:
    other = ObservedScore(0.8, (0.7, 0.9), 0.4, (0.2, 0.6), 0.1)
    found = replace(OPEN, attacks=OPEN.attacks | {"Better": other})
    assert (found.verdict, found.shown_attack, found.worst_attack) == (LEAKS, "Better", "LLG")
    assert closing(report(found)).startswith("Labels leak: Better reads 80 %")
    unsure = replace(OPEN, attacks=OPEN.attacks | {"Better": replace(other, surely=0.04)})
    assert (unsure.verdict, unsure.shown_attack) == (UNCLEAR, "LLG")


def test_without_an_attack_that_looks_nothing_is_measured() -> None:
    blind = {"BestConstant": QUIET.attacks["BestConstant"]}
    found = replace(QUIET, attacks=blind, worst_attack="BestConstant")
    assert found.verdict == NOT_MEASURED
    assert "no attack that looks" in closing(report(found))


def test_unlike_messages_of_the_whole_are_told_however_few() -> None:
    some = replace(QUIET, unlike=1, example="its norm is 9, theirs 1 to 2")
    [told] = [line for line in remarks(report(some)) if "1 of 30 messages" in line]
    assert "its norm is 9" in told
    assert "by chance" in told
    many = replace(some, unlike=2, alarming=True)
    [warned] = [line for line in remarks(report(many)) if "2 of 30" in line]
    assert "chance" not in warned


def test_unlike_messages_count_as_read_whole_where_nothing_is_said_to_leak() -> None:
    quieter = replace(row(-0.1, 0.02), messages=100, unlike=3)
    assert quieter.verdict == NOT_SHOWN
    assert replace(quieter, unlike=4).verdict == UNCLEAR
    assert replace(quieter, unlike=40, alarming=True).verdict == NOT_MEASURED


def test_what_was_not_scored_is_counted() -> None:
    said = remarks(replace(report(QUIET), without_labels=4, refused=2, left_out={"cohort": "why"}))
    assert "4 messages have no labels recorded: not scored." in said
    assert "2 messages could not be read by the server: not here." in said
    assert "Not attacked, cohort: why." in said


def test_a_long_name_is_cut_and_a_page_is_whole() -> None:
    page = render_observed(report(QUIET, row(0.1, 0.6, view="client", of="x" * 1000)))
    assert "x" * 100 not in page
    assert page.count("\n| ") == 3
