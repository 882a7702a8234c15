from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.search.ranges import Range

SHARES = st.floats(0, 1, exclude_max=True)
NUMBERS = st.floats(1e-6, 1e6) | st.integers(1, 10**6)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    low, high = sorted(draw(st.lists(NUMBERS, min_size=2, max_size=2, unique_by=float)))
    kind = draw(st.sampled_from(["plain", "log", "step", "choices"]))
    if kind == "choices":
        return Range(name="x", choices=(low, "text", high))
    if kind == "step":
        return Range(name="x", low=low, high=high, step=(high - low) * draw(st.floats(0.01, 1)))
    return Range(name="x", low=low, high=high, log=kind == "log")


@given(ranges(), SHARES)
def test_a_value_is_never_outside_its_range(chosen: Range, share: float) -> None:
    value = chosen.value(chosen.at(share))
    if chosen.choices is not None:
        assert value in chosen.choices
    else:
        low, high = chosen.bounds
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


@given(st.integers(-50, 50), st.integers(1, 100), SHARES, st.booleans())
def test_whole_numbers_stay_whole(low: int, width: int, share: float, log: bool) -> None:
    if log:
        low = abs(low) + 1
    chosen = Range(name="x", low=low, high=low + width, log=log)
    value = chosen.value(chosen.at(share))
    assert type(value) is int
    assert low <= value <= low + width


def test_whole_numbers_are_equally_likely_at_both_ends() -> None:
    chosen = Range(name="x", low=2, high=8)
    values = [chosen.value(chosen.at((i + 0.5) / 700)) for i in range(700)]
    assert {value: values.count(value) for value in values} == dict.fromkeys(range(2, 9), 100)


def test_steps_are_where_they_are_written() -> None:
    tenths = Range(name="x", low=0.1, high=0.5, step=0.1)
    assert tenths.count == 5
    assert [tenths.value(i) for i in range(5)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    even = Range(name="x", low=2, high=9, step=2)
    assert even.count == 4
    assert [even.value(i) for i in range(4)] == [2, 4, 6, 8]


def test_log_counts_ratios() -> None:
    chosen = Range(name="x", low=1e-4, high=1.0, log=True)
    assert chosen.value(chosen.at(0.5)) == pytest.approx(0.01)
    even = Range(name="x", low=1e-4, high=1.0)
    assert even.value(even.at(0.5)) == pytest.approx(0.5, rel=1e-2)


def test_a_number_has_at_most_three_digits() -> None:
    chosen = Range(name="x", low=0.0, high=1.0)
    assert chosen.value(math.pi / 10) == 0.314


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "needs low and high, or choices"),
    "no high": ({"low": 1.0}, "needs low and high, or choices"),
    "misspelt": ({"low": 1.0, "hihg": 2.0}, "did you mean 'high'"),
    "turned round": ({"low": 2.0, "high": 1.0}, "low must be below high"),
    "no room": ({"low": 2, "high": 2}, "low must be below high"),
    "nan": ({"low": math.nan, "high": 2.0}, "low must be a finite number"),
    "infinite": ({"low": 0.0, "high": math.inf}, "high must be a finite number"),
    "text": ({"low": "1", "high": 2}, "low must be a finite number"),
    "bool": ({"low": False, "high": True}, "low must be a finite number"),
    "log from 0": ({"low": 0.0, "high": 1.0, "log": True}, "low must be above 0"),
    "log as text": ({"low": 0.5, "high": 1.0, "log": "yes"}, "log must be true or false"),
    "log and step": ({"low": 1, "high": 9, "log": True, "step": 2}, "both log and step"),
    "step 0": ({"low": 1, "high": 9, "step": 0}, "step must be above 0"),
    "step too far": ({"low": 1, "high": 9, "step": 9}, "step must be above 0 and fit"),
    "no choices": ({"choices": []}, "at least one entry"),
    "choices as text": ({"choices": "ab"}, "choices must be a list"),
    "a choice twice": ({"choices": [1, 2, 1]}, "lists a choice twice"),
    "choices and a range": ({"choices": [1], "low": 1, "high": 2}, "choices and a range"),
}


@pytest.mark.parametrize(("table", "said"), BAD.values(), ids=BAD)
def test_a_range_that_is_none_is_refused_in_one_line(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableInputError, match=said) as caught:
        Range.from_dict("ratio", table)
    assert "ratio" in str(caught.value)
    assert "\n" not in str(caught.value)
