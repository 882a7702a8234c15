from __future__ import annotations

import json

import pytest

from gradguard.evaluation import Report, UnusableInputError
from tests.evaluation.examples import certified, report, row


def test_a_report_survives_a_round_trip() -> None:
    original = report(row(), row(stage="trained", accuracy_ci=None), complete=False)
    assert Report.from_json(original.to_json()) == original


def test_certificates_and_an_infinite_epsilon_survive_a_round_trip() -> None:
    original = report(certified(), certified(composition="skewed", epsilon=float("inf")))
    assert '"epsilon": "inf"' in original.to_json()
    assert Report.from_json(original.to_json()) == original


def test_rows_have_the_fields_that_others_read() -> None:
    table = json.loads(report(row()).to_json())
    assert table["schema"] == 1
    assert set(table["rows"][0]) >= {
        *("defense", "composition", "stage", "batch_size", "accuracy", "accuracy_ci"),
        *("bytes_per_update", "dense_bytes", "step_overhead", "attacks", "worst_attack"),
        *("worst_asr", "worst_ci", "blind_asr", "advantage", "advantage_ci"),
        *("epsilon", "delta", "certificate", "diverged", "skipped"),
    }
    assert set(table["rows"][0]["attacks"]["LLG"]) == {"asr", "ci", "advantage"}


def test_json_never_holds_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        report(row(accuracy=float("nan"))).to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"schema": 2}', '{"schema": 1, "rows": [{}]}', '{"schema": 1}']
)
def test_what_is_no_report_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UnusableInputError) as caught:
        Report.from_json(text)
    assert "\n" not in str(caught.value)
