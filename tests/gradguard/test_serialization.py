from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard import (
    Cast,
    ClipByGlobalNorm,
    ClipByValue,
    Defense,
    ErrorFeedback,
    GradTransform,
    KeepTopK,
    Only,
    Quantize,
    Sign,
    Withhold,
    chain,
)
from gradguard.serialization import transform_from_plain, transform_to_plain
from gradguard.testing import transforms

STUDY = """
[[defense]]
name = "top-k 0.1 %"
transform = [{ KeepTopK = { ratio = 0.001, scope = "global" } }]
[[defense]]
name = "nested"
transform = [
    { ErrorFeedback = { transform = [{ Only = { pattern = "head.*", transform = { Sign = {} } } },
                                     { Cast = { dtype = "bfloat16" } }] } },
    { Quantize = { bits = 8 } },
    "Ternary",
]
"""


def test_the_study_file_of_the_design_reads() -> None:
    first, second = map(Defense.from_dict, tomllib.loads(STUDY)["defense"])
    assert first == Defense("top-k 0.1 %", transform=KeepTopK(0.001, scope="global"))
    feedback = ErrorFeedback(chain(Only("head.*", Sign()), Cast("bfloat16")))
    assert second.chain.links[:2] == (feedback, Quantize(8))


@given(transforms())
def test_plain_data_round_trips(transform: GradTransform) -> None:
    assert transform_from_plain(transform_to_plain(transform)) == transform


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), transforms())
def test_defences_round_trip_through_every_format(name: str, transform: GradTransform) -> None:
    defense = Defense(name, transform=transform)
    assert Defense.from_dict(defense.to_dict()) == defense
    assert Defense.from_toml(defense.to_toml()) == defense
    assert Defense.from_json(defense.to_json()) == defense


def test_infinity_round_trips_and_json_stays_valid() -> None:
    defense = Defense("inf", transform=ClipByGlobalNorm(math.inf))
    assert "Infinity" not in defense.to_json()
    assert Defense.from_json(defense.to_json()) == defense
    assert Defense.from_toml(defense.to_toml()) == defense


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([{"KeepTopK": {"ratoi": 0.1}}], r"transform\[0\].KeepTopK: unknown field 'ratoi'; did "
         "you mean 'ratio'"),
        ([{"keep_topk": {"ratio": 0.1}}], "unknown transform 'keep_topk'; did you mean 'KeepTopK'"),
        ([{"Zzz": {}}], "unknown transform 'Zzz'; known are Identity, ClipByGlobalNorm"),
        ([{"KeepTopK": {"ratio": 1.5}}], r"ratio must lie in \(0, 1\], got 1.5"),
        ([{"KeepTopK": {"ratio": "0.1"}}], r"transform\[0\].KeepTopK: "),
        ([{"KeepTopK": {}}], "missing 1 required positional argument: 'ratio'"),
        ([{"Sign": {"strength": 1}}], "unknown field 'strength'; none is known here"),
        ([{"AddGaussian": {"stddev": -1}}], "stddev must be at least 0 and finite, got -1"),
        ([{"Quantize": 8}], r"expected a table of fields \(bits\), got 8"),
        ([{"Sign": {}, "Ternary": {}}], "expected a table with one transform's name"),
        ([3], r"transform\[0\]: expected a table"),
        ([{"ErrorFeedback": {"transform": [{"AddGaussian": {"stddev": 1.0}}]}}],
         "take the noise back"),
        ([{"ErrorFeedback": {"transform": [{"KeepTopK": {"ratio": 2}}]}}],
         r"transform\[0\].ErrorFeedback.transform\[0\].KeepTopK: ratio"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_place_and_mend(plain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        transform_from_plain(plain)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"name": "x", "transfrom": []}, "defence 'x': unknown key 'transfrom'; did you mean"),
        ({"name": "x"}, r"transform is missing; write transform = \[\]"),
        ({"transform": []}, "a defence needs a name, got None"),
        ({"name": "", "transform": []}, "a defence needs a name"),
        ([], "a defence is a table"),
    ],
    ids=str,
)
def test_unusable_defences_are_refused(plain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Defense.from_dict(plain)


@pytest.mark.parametrize("read", [Defense.from_toml, Defense.from_json])
def test_text_that_does_not_parse_is_refused(read: Any) -> None:
    with pytest.raises(ValueError, match="does not parse"):
        read("{ name =")


def test_a_users_own_transform_cannot_be_written_to_a_file() -> None:
    class Mine(Sign):
        pass

    with pytest.raises(ValueError, match="Mine is not one of gradguard's transforms"):
        transform_to_plain(Mine())


@pytest.mark.parametrize("wrong", [Sign, [Sign], [torch.zeros(1)]])
def test_what_is_no_transform_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected a transform"):
        Defense("x", transform=wrong)


def test_equal_defences_compare_equal_however_they_were_written() -> None:
    one = Defense("x", transform=Withhold("a.*"))
    assert one == Defense("x", transform=[Withhold("a.*")])
    assert one == Defense("x", transform=chain(Withhold("a.*")))
    assert hash(one) == hash(Defense("x", transform=(Withhold("a.*"),)))


def test_a_pattern_that_spells_infinity_stays_a_pattern() -> None:
    defence = Defense("inf", transform=[Withhold("inf"), Only("inf", ClipByValue(math.inf))])
    assert Defense.from_json(defence.to_json()) == defence
