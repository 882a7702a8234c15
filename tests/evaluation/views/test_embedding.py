from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.views.embedding import json_for_script, policy

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_it_reads_back_as_the_same_value_and_has_nothing_that_html_reads(value: Any) -> None:
    text = json_for_script(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_what_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_for_script(float("nan"))


def test_a_policy_changes_with_every_character_of_a_script() -> None:
    assert policy(["a"]) != policy(["a "])
    assert policy(["a", "b"]).count("sha256-") == 2
