from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.search.objectives import Candidate, pareto
from gradguard.evaluation.search.recommend import Constraints, recommend

SHARES = st.integers(0, 20).map(lambda n: n / 20)


def candidate(
    name: str, read: float, accuracy: float, size: float = 1000.0, **more: Any
) -> Candidate:
    values: dict[str, Any] = {
        "advantage": read,
        "advantage_most": read + 0.02,
        "accuracy": accuracy,
        "accuracy_least": accuracy - 0.02,
        "bytes_per_update": size,
        "step_overhead": 1.0,
    }
    return Candidate(name=name, **values | more)


@st.composite
def tried(draw: st.DrawFn) -> list[Candidate]:
    return [
        candidate(
            f"c{i}",
            draw(SHARES),
            draw(SHARES),
            draw(st.sampled_from([1.0, 10.0, 1e6])),
            step_overhead=draw(st.sampled_from([0.9, 1.0, 3.0])),
            failed=draw(st.sampled_from([None, None, "it diverged"])),
            doubt=draw(st.sampled_from([None, None, None, "too weak"])),
        )
        for i in range(draw(st.integers(0, 6)))
    ]


LIMITS = st.builds(
    Constraints,
    max_advantage=st.none() | SHARES,
    min_accuracy=st.none() | SHARES,
    max_bytes=st.none() | st.sampled_from([5.0, 100.0]),
)


@given(tried(), LIMITS)
def test_what_is_recommended_did_not_fail_and_satisfies_every_constraint(
    candidates: list[Candidate], limits: Constraints
) -> None:
    chosen = recommend(candidates, limits)
    by_name = {c.name: c for c in candidates}
    for name in (chosen.use, chosen.instead):
        if name is not None:
            found = by_name[name]
            assert found.failed is None
            assert found.doubt is None
            assert limits.max_advantage is None or found.advantage_most <= limits.max_advantage
            assert limits.min_accuracy is None or found.accuracy_least >= limits.min_accuracy
            assert limits.max_bytes is None or found.bytes_per_update <= limits.max_bytes


@given(tried(), LIMITS)
def test_something_is_recommended_where_anything_holds(
    candidates: list[Candidate], limits: Constraints
) -> None:
    chosen = recommend(candidates, limits)
    sound = [c for c in candidates if c.failed is None]
    holding = [c for c in sound if c.doubt is None and not limits.misses(c)]
    assert (chosen.use is not None) == bool(holding)
    assert (chosen.nearest is not None) == (bool(sound) and not holding)
    assert chosen.instead is None or chosen.instead != chosen.use


@given(tried(), LIMITS)
def test_nothing_that_holds_is_better_in_every_respect(
    candidates: list[Candidate], limits: Constraints
) -> None:
    chosen = recommend(candidates, limits)
    holding = [c for c in candidates if c.doubt is None and not limits.misses(c)]
    if chosen.use is not None:
        assert chosen.use in {c.name for c in pareto(holding)}


@given(tried(), LIMITS)
def test_every_sentence_is_one_and_a_line(candidates: list[Candidate], limits: Constraints) -> None:
    sentence = recommend(candidates, limits).sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "nan" not in sentence


A = candidate("A", 0.03, 0.90)
B = candidate("B", 0.00, 0.85, 500.0)
C = candidate("C", 0.30, 0.95, 2000.0, step_overhead=3.0)


def test_with_a_limit_on_the_advantage_the_most_accurate_is_best() -> None:
    assert recommend([A, B, C], Constraints(max_advantage=0.05)).use == "A"
    assert recommend([A, B, C], Constraints(max_advantage=0.04)).use == "B"
    assert recommend([A, B, C], Constraints(max_advantage=0.4)).use == "C"


def test_with_a_limit_on_accuracy_the_one_that_leaks_least_is_best() -> None:
    assert recommend([A, B, C], Constraints(min_accuracy=0.83)).use == "B"
    assert recommend([A, B, C], Constraints(min_accuracy=0.88)).use == "A"


def test_with_both_limits_or_none_the_balance_is_best() -> None:
    assert recommend([A, B, C], Constraints()).use == "A"
    both = Constraints(max_advantage=0.4, min_accuracy=0.5)
    assert recommend([A, B, C], both).use == "A"


def test_a_limit_on_bytes_is_kept() -> None:
    assert recommend([A, B, C], Constraints(max_bytes=500)).use == "B"


def test_the_bad_end_is_judged_and_not_the_mean() -> None:
    sure = candidate("sure", 0.05, 0.8, advantage_most=0.06)
    unsure = candidate("unsure", 0.01, 0.9, advantage_most=0.3)
    assert recommend([sure, unsure], Constraints(max_advantage=0.1)).use == "sure"
    poor = candidate("poor", 0.0, 0.95, accuracy_least=0.5)
    assert recommend([sure, poor], Constraints(min_accuracy=0.7)).use == "sure"


def test_under_a_point_shorter_messages_decide() -> None:
    long, short = candidate("long", 0.1, 0.902, 9000.0), candidate("short", 0.1, 0.899, 1000.0)
    assert recommend([long, short], Constraints()).use == "short"


def test_the_recommendation_says_what_the_runner_up_would_cost() -> None:
    assert recommend([A, B, C], Constraints(max_advantage=0.4)).sentence == (
        "Use C: an advantage of 30 % over a blind guess (at most 32 %), an accuracy of 95 % "
        "(at least 93 %), 2,000 bytes a message and 3 times the step time; A instead reads "
        "27 points less, sends 2 times fewer bytes, takes 3 times less time a step and costs "
        "5 points of accuracy."
    )
    assert recommend([A, C], Constraints()).sentence.endswith(
        "; C instead gains 5 points of accuracy, reads 27 points more, sends 2 times the bytes and "
        "takes 3 times the time a step."
    )


def test_a_runner_up_that_differs_in_nothing_is_passed_over() -> None:
    like_a = candidate("like A", 0.031, 0.901, 1001.0)
    assert recommend([A, like_a, B], Constraints()).instead == "B"
    assert recommend([A, like_a], Constraints()).sentence.endswith(
        "; like A instead is as good by every measure."
    )


def test_the_accuracy_without_a_defence_stands_beside_that_of_the_best() -> None:
    said = recommend([A], Constraints(), undefended=0.97).sentence
    assert "an accuracy of 90 % (at least 88 %, and 97 % without a defence)" in said


def test_times_just_across_the_border_of_a_class_are_not_told_apart() -> None:
    slow = candidate("slow", 0.1, 0.90, step_overhead=2.9)
    quick = candidate("quick", 0.0, 0.80, step_overhead=2.8)
    assert slow.time_class != quick.time_class
    said = recommend([slow, quick], Constraints(max_advantage=0.2)).sentence
    assert said.endswith("quick instead reads 10 points less and costs 10 points of accuracy.")


def test_one_alone_has_no_runner_up() -> None:
    chosen = recommend([A], Constraints())
    assert chosen.instead is None
    assert chosen.sentence.endswith("; no other candidate that holds is better in any respect.")


def test_where_none_holds_the_nearest_is_named_and_by_how_much_it_fails() -> None:
    chosen = recommend([A, C], Constraints(max_advantage=0.01, min_accuracy=0.89))
    assert (chosen.use, chosen.nearest) == (None, "A")
    assert chosen.sentence == (
        "No candidate is sure to have an advantage of at most 1 % and an accuracy of at least "
        "89 %; the nearest is A: its advantage may be as high as 5 %, 4 points too high and its "
        "accuracy may be as low as 88 %, 1 point too low."
    )
    sized = recommend([A, C], Constraints(max_bytes=600))
    assert sized.sentence.endswith("A: it takes 1,000 bytes a message, 400 too many.")


def test_a_gap_is_never_nothing() -> None:
    near = candidate("near", 0.03, 0.9, advantage_most=0.1 + 1e-6)
    said = recommend([near], Constraints(max_advantage=0.1)).sentence
    assert "less than 0.1 points too high" in said


def test_what_the_report_doubts_is_not_recommended() -> None:
    doubtful = candidate("doubtful", 0.0, 0.99, doubt="attack too weak here")
    assert recommend([doubtful, A], Constraints()).use == "A"
    said = recommend([doubtful], Constraints()).sentence
    assert said.endswith("what it leaks is understated (attack too weak here).")


def test_where_all_failed_the_reason_is_said() -> None:
    failed = Candidate(name="F", failed="training with it diverged")
    chosen = recommend([failed], Constraints())
    assert chosen.use is None
    assert "every candidate failed: training with it diverged" in chosen.sentence
    assert recommend([], Constraints()).sentence.endswith("failed.")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_advantage": 20}, "max-advantage must be from 0 to 1"),
        ({"max_advantage": math.nan}, "max-advantage must be from 0 to 1"),
        ({"min_accuracy": -0.1}, "min-accuracy must be from 0 to 1"),
        ({"min_accuracy": "0.9"}, "min-accuracy must be from 0 to 1"),
        ({"max_bytes": 0}, "max-bytes must be above 0"),
        ({"max_bytes": math.nan}, "max-bytes must be above 0"),
        ({"max_bytes": True}, "max-bytes must be above 0"),
    ],
)
def test_a_limit_that_is_none_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableInputError, match=said):
        Constraints(**values)
