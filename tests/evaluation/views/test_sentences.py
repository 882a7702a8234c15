from __future__ import annotations

from dataclasses import replace

from gradguard.evaluation import AttackScore
from gradguard.evaluation.views.sentences import closing_line, leaks, sentences, tone
from tests.evaluation.examples import certified, report, row

QUIET = row(
    defense="loud noise",
    worst_attack="BestConstant",
    worst_asr=0.4,
    advantage=0.0,
    advantage_ci=(-0.04, 0.04),
    attacks={"LLG": AttackScore(0.4, (0.35, 0.45), 0.0)},
)
UNCLEAR = row(defense="some noise", worst_asr=0.45, advantage=0.08, advantage_ci=(-0.1, 0.26))


def test_a_defence_leaks_only_where_the_whole_interval_says_so() -> None:
    assert leaks(row())
    assert not leaks(QUIET)
    assert not leaks(UNCLEAR)


def test_a_sentence_says_cost_reader_and_blind_guess() -> None:
    study = {
        "training": {"seeds": 2},
        "defense": [{"name": "none", "transform": []}, {"name": "top-k 1 %", "transform": ["..."]}],
    }
    said = sentences(report(row(defense="none", accuracy=0.95), row(), study=study))
    assert said["top-k 1 %"] == (
        "top-k 1 %: costs 5 points of accuracy (90 % against 95 %); a message takes 32 bytes, 400 "
        "uncompressed; LLG reads 70 % of the labels in skewed batches of 8 on an untrained model, "
        "where a blind guess gets 40 %."
    )


def test_without_an_undefended_row_no_cost_is_claimed() -> None:
    (sentence,) = sentences(report(row())).values()
    assert "trains to an accuracy of 90 %" in sentence


def test_a_sentence_mentions_the_other_stage() -> None:
    trained = row(stage="trained", worst_asr=0.6, advantage=0.33, advantage_ci=(0.2, 0.4))
    (sentence,) = sentences(report(row(), trained)).values()
    assert sentence.endswith("; on a trained model, LLG reads 60 % (blind 40 %).")
    quiet = row(stage="trained", advantage=0.0, advantage_ci=(-0.1, 0.1))
    (sentence,) = sentences(report(row(), quiet)).values()
    assert sentence.endswith(
        "; on a trained model no clear leak was found (at most 75 % read, blind 40 %)."
    )


def test_a_sentence_takes_the_row_that_leaks_most() -> None:
    mild = row(stage="trained", advantage=0.9, advantage_ci=(-0.1, 1.0), worst_asr=0.99)
    assert "70 %" in sentences(report(mild, row()))["top-k 1 %"]


def test_a_diverged_defence_is_called_useless() -> None:
    (sentence,) = sentences(report(row(accuracy=0.0, diverged=True))).values()
    assert "diverges" in sentence


def test_no_leak_shown_is_not_called_safe() -> None:
    assert "no attack here does better than a blind guess" in sentences(report(QUIET))["loud noise"]
    assert "unclear" in sentences(report(UNCLEAR))["some noise"]
    assert "no proof" in closing_line(report(row(), QUIET))


def test_a_blind_guess_chosen_by_bad_luck_is_not_taken_for_silence() -> None:
    unlucky = row(
        worst_attack="BestConstant",
        worst_asr=0.4,
        worst_ci=(0.35, 0.45),
        advantage=0.0,
        advantage_ci=(0.0, 0.0),
    )
    (sentence,) = sentences(report(unlucky)).values()
    assert [tone(r) for r in (unlucky, QUIET, UNCLEAR, row())] == [
        *("unclear", "quiet", "unclear", "leaks")
    ]
    assert "does better" not in sentence
    assert "unclear" in sentence
    assert "LLG, not chosen beforehand, 70 %" in sentence


def test_the_closing_line_counts_leaks() -> None:
    assert closing_line(report(row(), row(defense="b"))).startswith("All 2 defences leak labels")
    assert closing_line(report(row())).startswith("The one defence leaks labels")
    assert closing_line(report(row(), QUIET, UNCLEAR)) == (
        "1 of 3 defences leak labels; 1 may leak: some noise; not shown to leak here, which is no "
        "proof: loud noise."
    )
    assert closing_line(report()) == "No row was finished."


def test_a_defence_that_may_leak_is_not_counted_among_those_not_shown_to() -> None:
    assert closing_line(report(UNCLEAR)) == "0 of 1 defences leak labels; 1 may leak: some noise."
    # The mean of its other row is higher, but even the bad end of that shows none.
    other = replace(QUIET, defense="some noise", advantage=0.04, advantage_ci=(0.03, 0.05))
    chance = replace(UNCLEAR, advantage=0.01)
    assert "1 may leak" in closing_line(report(other, chance))


def test_the_closing_line_cuts_long_names() -> None:
    for rows in ([row(defense="A" * 400)], [replace(QUIET, defense="A" * 400)]):
        assert "A" * 61 not in closing_line(report(*rows))


def test_a_sentence_says_what_is_proven_and_rounds_it_up() -> None:
    (sentence,) = sentences(report(certified(epsilon=1.231))).values()
    assert sentence.endswith(
        "; proven against every attacker: from one message of iid batches of 8, a record's label "
        "is named with at most 16 % (a guess: 10 %), and a training run has epsilon 1.24 at delta "
        "1e-05."
    )
    (unbounded,) = sentences(report(certified(epsilon=float("inf")))).values()
    assert unbounded.endswith("epsilon unbounded.")


def test_dp_sgd_without_a_transform_is_not_taken_for_no_defence() -> None:
    study = {
        "training": {"seeds": 2},
        "defense": [{"name": "DP-SGD", "dp": {"noise_multiplier": 4.0}, "transform": []}],
    }
    (sentence,) = sentences(report(certified(), study=study)).values()
    assert "trains to an accuracy of 90 %" in sentence


def test_the_bytes_of_a_message_are_said_where_they_were_measured() -> None:
    (said,) = sentences(report(row(bytes_per_update=1234.4, dense_bytes=38440))).values()
    assert "; a message takes 1,234 bytes, 38,440 uncompressed; " in said
    (silent,) = sentences(report(row(bytes_per_update=None))).values()
    assert "bytes" not in silent
