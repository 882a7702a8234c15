from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation import AttackScore, Failure, Report, Row, UnusableInputError
from gradguard.evaluation.decisions.gate import Limits, Verdict, judge, may_leak
from gradguard.evaluation.metrics import advantage
from tests.evaluation.decisions.reports import BLIND, judgeable, quiet, scored
from tests.evaluation.examples import certified

NAME = "top-k 1 %"


def verdict(*rows: Row, **limits: float | None) -> Verdict:
    return judge(judgeable(*rows), defense=NAME, **({"max_advantage": 0.2} | limits))  # type: ignore[arg-type]


def test_the_upper_end_is_judged_and_not_the_mean() -> None:
    one = quiet(advantage=0.05, advantage_ci=(0.0, 0.3))
    assert not verdict(one, max_advantage=0.2).holds
    assert verdict(one, max_advantage=0.3).holds


def test_one_row_of_many_is_enough_to_fail() -> None:
    rows = [quiet(batch_size=size) for size in range(1, 20)]
    assert verdict(*rows).holds
    found = verdict(*rows, quiet(batch_size=99, advantage_ci=(0.0, 0.5)))
    assert not found.holds
    assert found.deciding[0].where.batch_size == 99


def test_an_attack_that_was_not_chosen_counts_as_well() -> None:
    attacks = quiet().attacks
    strong = quiet(attacks=attacks | {"ILRG": scored(0.7, (0.65, 0.75))})
    assert not verdict(strong).holds
    assert verdict(strong).deciding[0].attack == "ILRG"


def test_the_success_rates_upper_end_counts_where_it_is_higher() -> None:
    attacks = quiet().attacks
    wide = quiet(attacks=attacks | {"ILRG": scored(0.4, (0.3, 0.7))})
    assert verdict(wide).deciding[0].found == pytest.approx(advantage(0.7, BLIND))
    assert not verdict(wide, max_advantage=0.49).holds
    chosen = quiet(worst_ci=(0.3, 0.7))
    assert not verdict(chosen, max_advantage=0.49).holds


def test_a_blind_guess_has_no_advantage_over_itself() -> None:
    attacks = quiet().attacks | {"BestConstant": AttackScore(BLIND, (0.0, 1.0), 0.0)}
    assert verdict(quiet(attacks=attacks)).holds


@pytest.mark.parametrize(
    "changes",
    [
        {"attacks": quiet().attacks | {"ILRG": AttackScore(0.9, (0.9, 0.9), 0.0)}},
        {"blind_asr": 0.99},
        {"blind_asr": 0.97, "attacks": {"LLG": scored(0.42, (0.4, 0.44))}},
        {"worst_asr": 0.41, "attacks": quiet().attacks},
        {"worst_ci": (0.4, 0.43), "attacks": quiet().attacks},
        {"advantage": 0.0, "worst_asr": 0.9},
        {"advantage_ci": (-0.1, 0.03)},
        {"accuracy": 0.9, "accuracy_ci": (0.95, 1.0)},
        {"attacks": quiet().attacks | {"ILRG": scored(0.5, (0.3, 0.4))}},
    ],
)
def test_numbers_that_do_not_fit_one_another_are_not_believed(changes: dict[str, Any]) -> None:
    failing(judgeable(quiet(**changes)), "row 'top-k 1 %'")


def test_a_limit_that_is_just_reached_is_kept() -> None:
    one = quiet(advantage_ci=(0.0, 0.2))
    assert verdict(one, max_advantage=0.2).holds
    assert not verdict(one, max_advantage=math.nextafter(0.2, 0)).holds


def test_accuracy_is_judged_by_its_lower_end() -> None:
    one = quiet(accuracy=0.9, accuracy_ci=(0.85, 0.95))
    assert verdict(one, min_accuracy=0.85).holds
    assert not verdict(one, min_accuracy=0.86).holds
    with pytest.raises(UnusableInputError, match=r"training.seeds of at least 2"):
        verdict(quiet(accuracy_ci=None), min_accuracy=0.1)
    assert verdict(quiet(accuracy_ci=None)).holds


def test_no_epsilon_and_an_infinite_one_keep_to_no_limit() -> None:
    for epsilon in (None, math.inf):
        one = quiet(epsilon=epsilon, delta=1e-5)
        found = verdict(one, max_epsilon=1e300)
        assert not found.holds
        assert found.to_dict()["deciding"][1]["found"] in (None, "inf")
        assert verdict(one).holds
    assert verdict(quiet(epsilon=2.0, delta=1e-5), max_epsilon=2.0).holds
    assert not verdict(quiet(epsilon=2.1, delta=1e-5), max_epsilon=2.0).holds


def failing(report: Report, match: str, **limits: Any) -> None:
    with pytest.raises(UnusableInputError, match=match) as caught:
        judge(report, **(dict[str, Any](defense=NAME, max_advantage=1.0) | limits))
    assert "\n" not in str(caught.value)


def test_a_failed_row_never_holds() -> None:
    failure = Failure(defense=NAME, composition="iid", stage="init", batch_size=8, why="no\nmemory")
    failing(judgeable(quiet(), failures=(failure,)), r"init, iid, B = 8.*no memory")
    other = Failure(defense="other", composition="iid", stage="init", batch_size=8, why="no memory")
    assert judge(judgeable(quiet(), failures=(other,)), defense=NAME, max_advantage=0.2).holds


def test_an_incomplete_report_never_holds() -> None:
    failing(judgeable(quiet(), complete=False), "incomplete")


@pytest.mark.parametrize("key", ["stages", "compositions", "batch_sizes", "rounds"])
def test_a_missing_row_never_holds(key: str) -> None:
    report = judgeable(quiet())
    more = {"stages": "trained", "compositions": "iid", "batch_sizes": 64, "rounds": 5}[key]
    report.study["attack"][key].append(more)
    failing(report, r"lacks 1 of the rows.*" + str(more))


def test_what_the_study_leaves_out_is_what_it_does_by_default() -> None:
    report = judgeable(quiet(composition="iid"))
    del report.study["attack"]["batch_sizes"]
    failing(report, r"lacks 1 of the rows.*B = 64")


def test_a_defence_without_rows_never_holds() -> None:
    report = judgeable(quiet())
    report.study["defense"].append({"name": "later"})
    failing(report, "'later' lacks", defense="later")


def test_an_unknown_defence_is_answered_with_the_nearest() -> None:
    failing(judgeable(quiet()), "did you mean 'top-k 1 %'", defense="topk 1%")
    failing(judgeable(study={}), "no defence at all")


def test_divergence_never_holds() -> None:
    failing(judgeable(quiet(diverged=True, accuracy=0.0)), "diverged")


def test_a_row_without_an_attack_never_holds() -> None:
    blind = {"BestConstant": AttackScore(BLIND, (0.3, 0.5), 0.0)}
    failing(judgeable(quiet(attacks=blind, worst_attack="BestConstant")), "no attack was played")


def test_a_broken_certificate_never_holds() -> None:
    exceeding = quiet(worst_asr=0.99, worst_ci=(0.98, 1.0), advantage_ci=(0.97, 1.0))
    promised = certified(defense=NAME, composition="iid")
    broken = replace(exceeding, composition="iid", certificate=promised.certificate)
    failing(judgeable(broken), "certificate is broken")


def test_a_delta_that_lets_a_record_be_published_never_holds_an_epsilon() -> None:
    report = judgeable(quiet(epsilon=0.1, delta=0.01))
    assert judge(report, defense=NAME, max_advantage=0.2, max_epsilon=1.0).holds
    report.provenance["data"]["client"] = 1000
    failing(report, "lower delta", max_epsilon=1.0)
    assert judge(report, defense=NAME, max_advantage=0.2).holds


@pytest.mark.parametrize("records", [None, "1000", True, 0, -5, 1e3])
def test_without_a_number_of_records_no_epsilon_ever_holds(records: object) -> None:
    report = judgeable(quiet(epsilon=0.0, delta=0.9))
    report.provenance["data"]["client"] = records
    failing(report, "does not say how many", max_epsilon=1.0)
    failing(replace(report, provenance={}), "does not say how many", max_epsilon=1.0)
    failing(judgeable(quiet(epsilon=0.0, delta=1.0)), "delta must be below 1")


@pytest.mark.parametrize("scored", [None, "100", True, 0, 1, 19, 1e3])
def test_a_report_of_too_few_batches_never_holds(scored: object) -> None:
    unread = quiet(worst_asr=0.0, worst_ci=(0.0, 0.0), advantage_ci=(-2 / 3, -2 / 3))
    report = judgeable(unread)
    assert judge(report, defense=NAME, max_advantage=0.2).holds
    report.provenance["batches_per_row"]["scored"] = scored
    failing(report, "batches were scored")
    failing(replace(report, provenance={}), "batches were scored")


def test_where_a_blind_guess_is_always_right_nothing_holds() -> None:
    blind = {"BestConstant": AttackScore(1.0, (1.0, 1.0), 0.0), "LLG": AttackScore(1, (1, 1), 0.0)}
    failing(
        judgeable(quiet(attacks=blind, blind_asr=1.0, advantage=0.0, worst_asr=1.0)),
        "blind guess was right",
    )


def test_a_leak_that_the_report_itself_calls_understated_never_holds() -> None:
    adds_to_it = quiet(
        defense="more", worst_asr=0.9, worst_ci=(0.85, 0.95), advantage_ci=(0.75, 0.95)
    )
    report = judgeable(quiet(), adds_to_it)
    report.study["defense"][1]["transform"] = [{"Sign": {}}]
    failing(report, "attacks understate what 'top-k 1 %' leaks", max_advantage=0.2)
    assert not judge(report, defense=NAME, max_advantage=0.01).holds
    fewer = quiet(worst_asr=0.52, worst_ci=(0.5, 0.55), rounds=1)
    failing(judgeable(fewer, quiet(rounds=5)), "understate", max_advantage=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, 20, -math.inf])
def test_a_limit_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(UnusableInputError, match="max-advantage"):
        Limits(max_advantage=value)
    with pytest.raises(UnusableInputError, match="min-accuracy"):
        Limits(max_advantage=0.1, min_accuracy=value)
    if not 0 <= value < math.inf:
        with pytest.raises(UnusableInputError, match="max-epsilon"):
            Limits(max_advantage=0.1, max_epsilon=value)


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage_ci": (math.nan, math.nan)},
        {"advantage_ci": (0.0, math.nan)},
        {"advantage": math.nan},
        {"blind_asr": math.nan},
        {"worst_ci": (0.5, 0.4)},
        {"accuracy": 1e400},
        {"accuracy_ci": (math.nan, 1.0)},
        {"attacks": {"LLG": AttackScore(math.nan, (0.4, 0.5), 0.0)}},
        {"attacks": {"LLG": AttackScore(0.4, (0.4, math.nan), 0.0)}},
        {"epsilon": math.nan, "delta": 1e-5},
        {"epsilon": -1.0, "delta": 1e-5},
        {"worst_attack": "another", "attacks": quiet().attacks},
    ],
)
def test_numbers_that_are_none_never_hold(changes: dict[str, Any]) -> None:
    failing(judgeable(quiet(**changes)), "row 'top-k 1 %'")


def test_weak_evidence_is_noted() -> None:
    report = judgeable(quiet(skipped={"RLG": "the model has no bias"}))
    report.study["attack"]["attackers"] = ["LLG"]
    report.provenance["batches_per_row"]["scored"] = 25
    report.provenance["models_attacked"] = 1
    notes = " ".join(judge(report, defense=NAME, max_advantage=0.2).notes)
    for said in ("RLG was not run: the model has no bias", "(LLG)", "25 batches", "one model"):
        assert said in notes


SHARES = st.floats(0, 1)
SORTED = st.tuples(SHARES, SHARES, SHARES).map(sorted)


@st.composite
def rows(draw: st.DrawFn, size: int = 8) -> Row:
    attacks = {"BestConstant": quiet().attacks["BestConstant"]}
    for name in ("LLG", "EBI"):
        low, rate, high = draw(SORTED)
        attacks[name] = scored(rate, (low, high))
    above = attacks["LLG"].advantage
    ends = (above - draw(SHARES), min(above + draw(SHARES) * (1 - above), 1.0))
    return quiet(attacks=attacks, advantage_ci=ends, batch_size=size)


@given(rows(), SHARES, SHARES)
def test_a_lower_limit_never_turns_fails_into_holds(one: Row, x: float, y: float) -> None:
    low, high = sorted((x, y))
    assert verdict(one, max_advantage=high).holds >= verdict(one, max_advantage=low).holds


@given(rows(), rows(size=16), SHARES)
def test_one_more_row_never_turns_fails_into_holds(one: Row, two: Row, limit: float) -> None:
    both = verdict(one, two, max_advantage=limit)
    assert both.holds <= verdict(one, max_advantage=limit).holds
    assert both.holds == (max(may_leak(one)[0], may_leak(two)[0]) <= limit)


@given(rows())
def test_no_attack_is_above_what_may_leak(one: Row) -> None:
    worst, _ = may_leak(one)
    assert worst >= one.advantage_ci[1]
    for name, score in one.attacks.items():
        if name == "BestConstant":  # has none over itself
            continue
        assert worst >= advantage(score.asr, one.blind_asr)
        assert worst >= advantage(score.ci[1], one.blind_asr)
