from __future__ import annotations

from dataclasses import replace

from gradguard.evaluation import AttackScore
from gradguard.evaluation.certificates.law import (
    broken_certificates,
    certificates_sentence,
    promise,
    weak_deltas,
)
from tests.evaluation.examples import certified, row


def test_an_attack_that_is_clearly_above_a_certificate_breaks_it() -> None:
    impossible = certified(attacks={"LLG": AttackScore(0.9, (0.85, 0.95), 0.8)})
    (sentence,) = broken_certificates([row(), impossible])
    assert sentence.startswith("LLG reads 90.0 % of the labels behind 'DP-SGD'")
    assert "at least 85.0 %" in sentence
    assert "at most 69.5 % are certified: the certificate is broken" in sentence
    said = certificates_sentence([row(), impossible])
    assert said is not None
    assert said.startswith("1 of 1 attacks on rows with a certificate exceed it: LLG reads")


def test_any_attack_counts_and_not_only_the_worst_one() -> None:
    scores = {
        "LLG": AttackScore(0.6, (0.55, 0.65), 0.1),
        "other": AttackScore(0.9, (0.85, 0.95), 0.8),
    }
    assert len(broken_certificates([certified(attacks=scores)])) == 1


def test_what_chance_explains_and_what_has_no_certificate_breaks_none() -> None:
    by_chance = certified(attacks={"LLG": AttackScore(0.72, (0.68, 0.76), 0.4)})
    undefended = row(attacks={"LLG": AttackScore(1.0, (1.0, 1.0), 1.0)})
    assert broken_certificates([by_chance, undefended]) == []
    said = certificates_sentence([by_chance, undefended])
    assert said is not None
    assert said.startswith("no attack exceeds a certificate (1 were compared, in all 1 rows")


def test_without_differential_privacy_nothing_is_said_or_promised() -> None:
    assert certificates_sentence([row()]) is None
    assert certificates_sentence([]) is None
    assert promise(row()) is None


def test_a_promise_says_what_to_whom_and_under_which_assumption() -> None:
    said = promise(certified())
    assert said is not None
    assert (
        "Whoever sees one message from iid batches of 8, and knows all other records in them, but "
        "of this one only how frequent the classes are, names the label of a given record with a "
        "probability of at most 15.2 %, where a guess without the message is right with 10.0 %."
    ) in said
    assert "at most 69.5 % are recovered on average" in said
    assert "Over a training run of 100 messages, each computed from one record in 10," in said
    assert "epsilon is 1.25 at delta 1e-05 (one record added or removed)" in said
    assert "provided that a record's label does not depend on other records" in said
    assert "independent secret coins" in said
    assert "It does not cover" in said


def test_a_promise_for_dependent_labels_promises_less() -> None:
    said = promise(certified(composition="skewed"))
    assert said is not None
    assert "knows how such batches are made, but no label in them," in said
    assert "at most 76.4 %" in said  # Phi(Phi^-1(1/10) + 8/4)


def test_a_promise_without_sampling_speaks_of_no_coins() -> None:
    said = promise(certified(rate=1.0, epsilon=None, delta=None))
    assert said is not None
    assert "one record in" not in said
    assert "epsilon is" not in said


def test_a_delta_at_which_a_record_may_be_published_is_a_warning() -> None:
    private = certified()
    assert weak_deltas([private], 99_999) == []
    (said,) = weak_deltas([private, replace(private, composition="single")], 100_000)
    assert "delta 1e-05 of" in said
    assert "100000 records" in said
    assert weak_deltas([replace(private, delta=None)], 100_000) == []


def test_a_promise_counts_records_in_plain_numbers() -> None:
    assert "one record in 3.33," in str(promise(certified(rate=0.3)))
    assert "one record in 12,346," in str(promise(certified(rate=1 / 12_346)))
