from __future__ import annotations

import builtins
import math
import sys
from typing import Any

import pytest

from gradguard.evaluation import Failure, UnusableInputError
from tests.evaluation.decisions.reports import judgeable, quiet
from tests.evaluation.examples import certified, informed


def test_there_is_one_row_per_row_and_a_column_per_number() -> None:
    rows = [quiet(stage="trained"), quiet(stage="init", rounds=5), certified(epsilon=math.inf)]
    frame = judgeable(*rows).to_frame()
    assert list(frame["stage"]) == ["trained", "init", "init"]
    assert list(frame["rounds"]) == [1, 5, 1]
    assert list(frame["advantage_high"]) == [one.advantage_ci[1] for one in rows]
    assert list(frame["asr:LLG"]) == [one.attacks["LLG"].asr for one in rows]
    assert list(frame["asr_high:LLG"]) == [one.attacks["LLG"].ci[1] for one in rows]
    assert frame["epsilon"].dtype == float
    assert frame["epsilon"].isna().tolist() == [True, True, False]
    assert frame["epsilon"][2] == math.inf
    assert frame["certificate:label"].notna().tolist() == [False, False, True]


def test_nan_stands_only_where_there_is_no_number() -> None:
    attacks = {"LLG": quiet().attacks["LLG"]}
    rows = [quiet(accuracy_ci=None), quiet(batch_size=1, attacks=attacks, skipped={"RLG": "why"})]
    frame = judgeable(*rows).to_frame()
    assert frame["accuracy_low"].isna().tolist() == [True, False]
    assert frame["asr:BestConstant"].isna().tolist() == [False, True]
    assert frame["skipped:RLG"][1] == "why"
    assert frame["skipped:RLG"].isna().tolist() == [True, False]
    assert not frame["advantage"].isna().any()


def test_a_failed_row_is_no_row_and_is_told_apart() -> None:
    failure = Failure(defense="b", composition="iid", stage="init", batch_size=8, why="why")
    frame = judgeable(quiet(), failures=(failure,), complete=False).to_frame()
    assert len(frame) == 1
    assert frame.attrs["failures"][0]["why"] == "why"
    assert frame.attrs["complete"] is False


def test_knowledge_has_a_column_per_level() -> None:
    frame = judgeable(informed(0.4, 0.5, 0.6, 0.7)).to_frame()
    assert frame["knowledge:gradient"][0] == 0.4
    assert frame["knowledge:+ defence"][0] == 0.7


def test_an_empty_report_has_columns_and_no_row() -> None:
    frame = judgeable().to_frame()
    assert len(frame) == 0
    assert "advantage" in frame.columns


def test_without_pandas_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnusableInputError, match="pip install pandas"):
        judgeable(quiet()).to_frame()
