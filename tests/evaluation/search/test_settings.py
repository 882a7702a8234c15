from __future__ import annotations

from typing import Any

import pytest

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.search.recommend import Constraints
from gradguard.evaluation.search.settings import SearchSettings, references

KIND = {"name": "{bits} bits", "transform": [{"Quantize": {"bits": {"low": 2, "high": 8}}}]}


def test_an_empty_section_searches_a_space_of_its_own() -> None:
    settings = SearchSettings.from_dict({})
    assert (settings.trials, settings.batch, len(settings.space.kinds)) == (40, 8, 6)
    assert settings.constraints == Constraints()


def test_a_section_says_all_of_it() -> None:
    table = {"trials": 9, "batch": 3, "max_bytes": 500, "defense": [KIND]}
    settings = SearchSettings.from_dict(table)
    assert (settings.trials, settings.batch) == (9, 3)
    assert settings.constraints == Constraints(max_bytes=500)
    assert len(settings.space.kinds) == 1


def test_the_command_line_goes_before_the_file() -> None:
    table = {"trials": 9, "max_advantage": 0.5}
    settings = SearchSettings.from_dict(table, trials=4, max_advantage=0.1, min_accuracy=None)
    assert settings.trials == 4
    assert settings.constraints == Constraints(max_advantage=0.1)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([], "[search] must be a table"),
        ({"trails": 3}, "did you mean 'trials'"),
        ({"defenses": []}, "did you mean 'defense'"),
        ({"trials": 0}, "trials of a search"),
        ({"trials": 2.0}, "trials of a search"),
        ({"batch": True}, "batch of a search"),
        ({"batch": 10**9}, "batch of a search"),
        ({"max_advantage": 2}, "max-advantage"),
        ({"defense": []}, "[[search.defense]]"),
    ],
)
def test_a_section_that_cannot_be_used_is_refused_in_one_line(table: object, said: str) -> None:
    with pytest.raises(UnusableInputError) as caught:
        SearchSettings.from_dict(table)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


NONE = {"name": "none", "transform": []}
TOP_K = {"name": "top-k", "transform": [{"KeepTopK": {"ratio": 0.1}}]}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ([], [NONE]),
        ([TOP_K], [NONE, TOP_K]),
        ([TOP_K, NONE], [TOP_K, NONE]),
        ([{"name": "bare", "transform": ["Identity"]}], None),
        ([TOP_K | {"name": "none"}], [NONE | {"name": "undefended"}, TOP_K | {"name": "none"}]),
        ([NONE | {"cohort": 5}], [NONE | {"name": "undefended"}, NONE | {"cohort": 5}]),
    ],
)
def test_one_reference_has_no_defence(tables: list[Any], expected: list[Any] | None) -> None:
    found = references(tables)
    if expected is not None:
        assert found == expected
    assert [table["name"] for table in found][-len(tables) or None :] == [
        table["name"] for table in tables or [NONE]
    ]


def test_what_a_study_refuses_is_left_to_it() -> None:
    assert references([{"name": "t", "transform": [{"TopK": {}}]}])[-1]["name"] == "t"
    assert references("text") == ["text"]
    assert references([3])[-1] == 3
