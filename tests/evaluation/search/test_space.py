from __future__ import annotations

from typing import Any

import pytest

from gradguard import DPSGD, Cast, Defense, ErrorFeedback, KeepTopK, Quantize, Sign
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.search.default_space import default_search
from gradguard.evaluation.search.space import Kind, Point, Space, description

RATIO = {"low": 0.001, "high": 0.1, "log": True}
TOP_K = {"name": "top-k {ratio}", "transform": [{"KeepTopK": {"ratio": RATIO}}]}


def test_values_go_where_their_ranges_stood() -> None:
    kind = Kind(
        {
            "name": "{noise_multiplier} {ratio} {bits}",
            "dp": {
                "noise_multiplier": {"low": 0.5, "high": 4.0},
                "max_grad_norm": {"choices": [1.0, [1.0, 2.0]]},
            },
            "transform": [
                {"ErrorFeedback": {"transform": {"KeepTopK": {"ratio": RATIO}}}},
                {"Quantize": {"bits": {"low": 2, "high": 8}}},
            ],
        }
    )
    assert [r.name for _, r in kind.ranges] == [
        "noise_multiplier",
        "max_grad_norm",
        "ratio",
        "bits",
    ]
    assert kind.defense((2.0, 1, 0.01, 4)) == Defense(
        "2 0.01 4, max_grad_norm [1.0, 2.0]",
        dp=DPSGD(noise_multiplier=2.0, max_grad_norm=(1.0, 2.0)),
        transform=[ErrorFeedback(KeepTopK(0.01)), Quantize(4)],
    )


def test_a_bare_table_and_a_cohort_may_have_ranges_too() -> None:
    kind = Kind(
        {
            "name": "summed",
            "cohort": {"choices": [1, 10]},
            "transform": {"Cast": {"dtype": {"choices": ["float16", "bfloat16"]}}},
        }
    )
    made = kind.defense((1, 1))
    assert made == Defense(
        "summed, cohort 10, dtype bfloat16", cohort=10, transform=Cast("bfloat16")
    )


def test_a_parameter_that_the_name_leaves_out_is_added() -> None:
    kind = Kind(TOP_K | {"name": "top-k"})
    assert kind.defense((0.01,)).name == "top-k, ratio 0.01"


def test_a_second_parameter_of_a_name_is_numbered() -> None:
    parts = [{"KeepTopK": {"ratio": RATIO}}, {"KeepRandomK": {"ratio": RATIO}}]
    kind = Kind({"name": "{ratio} {ratio_2}", "transform": parts})
    assert kind.defense((0.01, 0.02)).name == "0.01 0.02"


def test_a_name_may_say_how_numbers_are_written() -> None:
    kind = Kind(TOP_K | {"name": "top-k {ratio:.1%} {{all}}"})
    assert kind.defense((0.01,)).name == "top-k 1.0% {all}"


def test_a_space_is_read_back_as_it_was_written() -> None:
    space = Space.from_list(default_search()["defense"])
    assert Space.from_list(space.to_list()) == space


def test_the_space_of_its_own_holds_what_should_be_compared() -> None:
    space = Space.from_list(default_search()["defense"])
    middle = [
        space.defense(Point(i, tuple(r.at(0.5) for _, r in kind.ranges)))
        for i, kind in enumerate(space.kinds)
    ]
    assert [defense.dp is not None for defense in middle] == [True, *[False] * 4, True]
    transforms = [type(link).__name__ for defense in middle for link in defense.chain.links]
    assert transforms == ["KeepTopK", "ErrorFeedback", "Quantize", "AddGaussian", "KeepTopK"]
    assert len({defense.name for defense in middle}) == 6


def test_a_kind_without_ranges_is_one_candidate() -> None:
    space = Space.from_list([{"name": "sign", "transform": [{"Sign": {}}]}])
    assert space.defense(Point(0, ())) == Defense("sign", transform=Sign())


def test_the_study_file_is_not_changed() -> None:
    table: dict[str, Any] = {"name": "{ratio}", "transform": [{"KeepTopK": {"ratio": dict(RATIO)}}]}
    Space.from_list([table]).defense(Point(0, (0.01,)))
    assert table["transform"] == [{"KeepTopK": {"ratio": RATIO}}]


def test_two_that_do_the_same_have_one_description() -> None:
    assert description(Defense("a", transform=Sign())) == description(
        Defense("b", transform=[Sign()])
    )
    assert description(Defense("a", transform=KeepTopK(0.1))) != description(
        Defense("a", transform=KeepTopK(0.2))
    )
    dp = DPSGD(noise_multiplier=1.0, max_grad_norm=1.0)
    assert description(Defense("a", transform=[])) != description(Defense("a", dp=dp, transform=[]))
    assert description(Defense("a", transform=[])) != description(
        Defense("a", transform=[], cohort=2)
    )


def named(name: object, **table: Any) -> list[dict[str, Any]]:
    return [{"name": name, "transform": [{"KeepTopK": {"ratio": RATIO}}]} | table]


def ratio(value: object) -> list[dict[str, Any]]:
    return named("t", transform=[{"KeepTopK": {"ratio": value}}])


BAD: dict[str, tuple[object, str]] = {
    "no list": ({"name": "a"}, "search.defense"),
    "nothing": ([], "search.defense"),
    "no tables": (["top-k"], "search.defense"),
    "no name": ([{"transform": []}], "needs a name"),
    "a name of blanks": (named(" "), "needs a name"),
    "a number for a name": (named(3), "needs a name"),
    "a parameter that there is not": (named("{ratoi}"), "{ratoi} is no parameter"),
    "an attribute": (named("{ratio.__class__}"), "is no parameter"),
    "a conversion": (named("{ratio!r}"), "is no parameter"),
    "a position": (named("{}"), "is no parameter"),
    "half a brace": (named("{ratio"), "name '{ratio'"),
    "a format of another type": (named("{ratio:d}"), "name '{ratio:d}'"),
    "a transform that there is not": (named("t", transform=[{"TopK": {}}]), "KeepTopK"),
    "a field that there is not": (named("t", transform=[{"KeepTopK": {"ratoi": RATIO}}]), "ratio"),
    "a key that there is not": (named("t", trasnform=[]), "did you mean 'transform'"),
    "a key of the range": (ratio({"low": 0.1, "hi": 0.2}), "'hi'"),
    "out of range at the top": (ratio({"low": 0.1, "high": 2.0}), "ratio"),
    "out of range at the bottom": (ratio({"low": -0.1, "high": 0.5}), "ratio"),
    "a choice out of range": (ratio({"choices": [0.1, 5.0, 0.2]}), "ratio"),
    "nothing but a typo": (named("t", dp={"noise_multiplyer": RATIO}), "noise_multiplier"),
}


@pytest.mark.parametrize(("tables", "said"), BAD.values(), ids=BAD)
def test_a_space_that_cannot_be_searched_is_refused_in_one_line(tables: object, said: str) -> None:
    with pytest.raises(UnusableInputError) as caught:
        Space.from_list(tables)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
