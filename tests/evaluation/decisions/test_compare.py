from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation import Failure, Report, Row, UnusableInputError
from gradguard.evaluation.decisions.compare import Comparison, compare, needed
from tests.evaluation.decisions.reports import judgeable, quiet, scored
from tests.evaluation.examples import certified


def compared(old: Row, new: Row) -> Comparison:
    return compare(judgeable(old), judgeable(new))


def leaking(advantage: float, half: float, **changes: Any) -> Row:
    return quiet(advantage=advantage, advantage_ci=(advantage - half, advantage + half), **changes)


def test_a_report_is_not_worse_than_itself() -> None:
    report = judgeable(quiet(), quiet(stage="trained", epsilon=math.inf, delta=1e-5))
    found = compare(report, report)
    assert found.changes == ()
    assert found.warnings == ()
    assert not found.worse
    assert found.matched == 2
    assert found.compared == 4


def test_a_difference_counts_only_beyond_the_squared_and_added_half_widths() -> None:
    old = leaking(0.3, 0.03)
    assert compared(old, leaking(0.349, 0.04)).changes == ()  # hypot(0.03, 0.04) is 0.05
    (change,) = compared(old, leaking(0.351, 0.04)).changes
    assert (change.quantity, change.better) == ("advantage", False)
    assert change.needed == pytest.approx(0.05)
    (change,) = compared(old, leaking(0.249, 0.04)).changes
    assert change.better


def test_of_uneven_intervals_the_ends_between_the_two_estimates_count() -> None:
    assert needed(0.2, (0.0, 0.23), 0.5, (0.46, 1.0)) == pytest.approx(0.05)
    assert needed(0.5, (0.46, 1.0), 0.2, (0.0, 0.23)) == pytest.approx(0.05)
    assert needed(0.2, (0.1, 0.15), 0.5, (0.55, 0.6)) == 0.0  # an estimate outside of its own


def test_lower_accuracy_is_worse_and_higher_is_better() -> None:
    old = quiet(accuracy=0.9, accuracy_ci=(0.88, 0.92))
    worse = compared(old, quiet(accuracy=0.8, accuracy_ci=(0.78, 0.82)))
    assert worse.worse
    assert [(c.quantity, c.better) for c in worse.changes] == [("accuracy", False)]
    better = compared(old, quiet(accuracy=0.99, accuracy_ci=(0.98, 1.0)))
    assert not better.worse
    assert len(better.changes) == 1


def test_divergence_is_worse_and_a_zero_of_both_is_not_compared() -> None:
    diverged = quiet(diverged=True, accuracy=0.0, accuracy_ci=(0.0, 0.0))
    assert compared(quiet(), diverged).worse
    assert compared(diverged, quiet()).changes[0].better
    assert "diverged in both" in compared(diverged, diverged).uncompared[0]


def test_accuracy_of_one_seed_is_not_compared() -> None:
    found = compared(quiet(), quiet(accuracy=0.1, accuracy_ci=None))
    assert found.changes == ()
    assert "one seed" in found.uncompared[0]
    assert found.compared == 1


def test_bytes_are_exact_under_one_seed() -> None:
    found = compared(quiet(bytes_per_update=100.0), quiet(bytes_per_update=100.125))
    assert found.worse
    assert compared(quiet(bytes_per_update=None), quiet()).changes == ()


def test_bytes_of_two_seeds_count_beyond_one_percent() -> None:
    old = judgeable(quiet(bytes_per_update=1000.0))
    for size, count in ((1009.0, 0), (1011.0, 1)):
        new = judgeable(quiet(bytes_per_update=size))
        new.study["seed"] = 7
        found = compare(old, new)
        assert len(found.changes) == count
        assert "seed differs: 0 and 7" in found.warnings


def test_epsilon_is_exact_and_none_promises_nothing() -> None:
    def private(epsilon: float | None, delta: float | None = 1e-5) -> Row:
        return quiet(epsilon=epsilon, delta=None if epsilon is None else delta)

    assert compared(private(1.0), private(1.001)).worse
    assert compared(private(1.001), private(1.0)).changes[0].better
    assert compared(private(1.0), private(None)).worse
    assert compared(private(1.0), private(math.inf)).worse
    assert compared(private(None), private(math.inf)).changes == ()
    other = compared(private(1.0), private(0.5, delta=1e-3))
    assert other.changes == ()
    assert "at delta 1e-05" in other.uncompared[0]


def test_a_pair_of_epsilon_and_delta_is_worse_where_neither_is_better() -> None:
    def private(epsilon: float, delta: float) -> Row:
        return quiet(epsilon=epsilon, delta=delta)

    first = private(1.0, 1e-6)
    for other in (private(100.0, 0.1), private(1.0, 0.1), private(math.inf, 1e-7)):
        assert compared(first, other).worse
        back = compared(other, first)
        assert back.changes
        assert all(change.better for change in back.changes)
    (change,) = compared(first, private(1.0, 0.1)).changes
    assert (change.quantity, change.before, change.after) == ("delta", 1e-6, 0.1)


def test_a_certificate_that_is_higher_or_gone_is_worse() -> None:
    old = certified()
    assert old.certificate is not None
    loose = {"value": 1.0, "multiset": old.certificate["multiset"] | {"value": 1.0}}
    for gone in (old.certificate | loose, None):
        other = replace(old, certificate=gone)
        found = compared(old, other)
        assert {c.quantity for c in found.changes if not c.better} == {
            "certificate of a label",
            "certificate of a batch",
        }
        assert not compared(other, old).worse
    assert compared(old, old).changes == ()


def test_an_attack_that_was_not_run_again_makes_nothing_better() -> None:
    read = quiet(advantage=0.9, advantage_ci=(0.85, 0.95))
    other = quiet(worst_attack="EBI", skipped={"LLG": "not mounted"})
    assert compared(read, quiet()).changes[0].better
    found = compared(read, other)
    assert found.changes == ()
    assert found.uncompared[0].startswith("leakage of top-k 1 % (init, skewed, B = 8): LLG, which")
    assert "(not mounted)" in found.uncompared[0]
    assert compared(other, read).worse


def test_an_attack_that_was_not_chosen_counts_as_well() -> None:
    read = quiet(attacks=quiet().attacks | {"ILRG": scored(0.97, (0.95, 0.99))})
    found = compared(quiet(), read)
    assert [(c.quantity, c.better) for c in found.changes] == [("strongest attack", False)]
    assert found.changes[0].after == pytest.approx(0.95)
    assert compared(read, quiet()).uncompared  # it was not run again


def test_a_row_that_is_there_twice_is_refused() -> None:
    with pytest.raises(UnusableInputError, match="there twice"):
        compare(judgeable(quiet()), judgeable(quiet(advantage=0.9), quiet()))


def test_step_time_is_never_judged() -> None:
    assert compared(quiet(step_overhead=1.0), quiet(step_overhead=100.0)).changes == ()


def test_what_belongs_to_a_defence_is_said_once() -> None:
    old = judgeable(quiet(), quiet(stage="trained"))
    changes = {"accuracy": 0.5, "accuracy_ci": (0.4, 0.6)}
    found = compare(old, judgeable(quiet(**changes), quiet(stage="trained", **changes)))
    (change,) = found.changes
    assert [where.stage for where in change.rows] == ["init", "trained"]


def test_a_row_that_can_no_longer_be_made_is_worse() -> None:
    failure = Failure(
        defense="top-k 1 %", composition="skewed", stage="init", batch_size=8, why="no memory"
    )
    found = compare(judgeable(quiet()), judgeable(failures=(failure,)))
    assert found.worse
    assert found.failed == ("top-k 1 % (init, skewed, B = 8)",)
    assert found.only_before == ()


def test_rows_in_one_report_only_are_listed_and_not_judged() -> None:
    old, new = judgeable(quiet(), quiet(batch_size=1)), judgeable(quiet(), quiet(batch_size=64))
    found = compare(old, new)
    assert not found.worse
    assert found.verdict == "not compared"
    assert compare(old, judgeable(*old.rows, quiet(batch_size=64))).verdict == "not worse"
    assert found.only_before == ("top-k 1 % (init, skewed, B = 1)",)
    assert found.only_after == ("top-k 1 % (init, skewed, B = 64)",)
    assert found.warnings == ()  # more batch sizes make no other row unfair


def test_what_makes_a_comparison_unfair_is_said() -> None:
    old, new = judgeable(quiet()), judgeable(quiet())
    new.study["training"]["seeds"] = 5
    new.study["defense"][0]["transform"] = [{"Sign": {}}]
    new.provenance["versions"] = {"torch": "3"}
    new.provenance["data"]["name"] = "mine"
    said = " ".join(compare(old, new).warnings)
    for part in ("training.seeds differs: 2 and 5", "versions.torch", "digits and mine"):
        assert part in said
    assert "'top-k 1 %' is not defined alike" in said


def test_a_default_that_is_written_out_is_no_difference() -> None:
    old, new = judgeable(quiet()), judgeable(quiet())
    new.study.update({"model": {"name": "cnn-relu"}, "data": {"name": "digits"}})
    new.study["attack"] |= {"participation": 1.0, "trials": 100, "seeds": 2}
    assert compare(old, new).warnings == ()


@pytest.mark.parametrize("first", [True, False])
def test_what_cannot_be_compared_is_refused(first: bool) -> None:
    whole, part = judgeable(quiet()), judgeable(quiet(), complete=False)
    with pytest.raises(UnusableInputError, match="first" if first else "second"):
        compare(*((part, whole) if first else (whole, part)))
    with pytest.raises(UnusableInputError, match="no row is in both"):
        compare(whole, judgeable(quiet(defense="other")))
    with pytest.raises(UnusableInputError, match="advantage must be"):
        compare(whole, judgeable(quiet(worst_asr=0.42, advantage=math.nan)))


SHARES = st.floats(0, 1)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    value, low, high = draw(SHARES), draw(SHARES), draw(SHARES)
    accuracy, wide = draw(SHARES), draw(SHARES)
    return judgeable(
        quiet(
            advantage=value,
            advantage_ci=(value * low, value + (1 - value) * high),
            accuracy=accuracy,
            accuracy_ci=(accuracy * wide, accuracy + (1 - accuracy) * wide),
            bytes_per_update=draw(st.floats(1, 1e6)),
            epsilon=draw(st.one_of(st.none(), st.floats(0, 1e6), st.just(math.inf))),
            delta=1e-5,
        )
    )


@given(reports(), reports())
def test_exchanged_what_was_better_is_worse(a: Report, b: Report) -> None:
    forth, back = compare(a, b), compare(b, a)
    assert {(c.quantity, c.before, c.after, c.better) for c in forth.changes} == {
        (c.quantity, c.after, c.before, not c.better) for c in back.changes
    }


@given(SHARES, SHARES, SHARES, SHARES, st.floats(0, 0.5))
def test_intervals_that_do_not_overlap_are_a_change_and_wider_ones_make_none(
    a: float, b: float, first: float, second: float, more: float
) -> None:
    least = needed(a, (a - first, a + first), b, (b - second, b + second))
    if abs(b - a) > first + second:
        assert abs(b - a) > least
    wider = needed(a, (a - first - more, a + first + more), b, (b - second, b + second))
    assert wider >= least


def test_of_equal_reports_of_two_seeds_about_five_percent_seem_changed() -> None:
    rng = np.random.default_rng(0)
    runs, batches = 4000, 200
    means = rng.beta(4, 6, (2, runs, batches)).mean(axis=2)
    half = 1.96 * math.sqrt(0.24 / 11 / batches)
    pairs = zip(*means.tolist(), strict=True)
    changed = sum(
        abs(b - a) > needed(a, (a - half, a + half), b, (b - half, b + half)) for a, b in pairs
    )
    assert 0.035 < changed / runs < 0.065


def test_plain_data_holds_no_infinity() -> None:
    one = quiet(epsilon=1.0, delta=1e-5)
    found = compared(one, replace(one, epsilon=math.inf)).to_dict()
    assert found["changes"][0]["after"] == "inf"
    assert found["changes"][0]["rows"][0]["stage"] == "init"
    assert found["verdict"] == "worse"
