from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradguard.evaluation import Failure, UnusableInputError
from gradguard.evaluation.decisions.judgeable import asked_for, conditions, read_judgeable
from tests.evaluation.decisions.reports import judgeable, quiet
from tests.evaluation.examples import certified, informed

Edit = Callable[[dict[str, Any]], object]


def edited(folder: Path, edit: Edit) -> Path:
    table = json.loads(judgeable(quiet(skipped={"RLG": "no bias"}), certified()).to_json())
    edit(table)
    path = folder / "report.json"
    path.write_text(json.dumps(table))
    return path


def test_a_report_is_read_from_its_file_and_from_its_folder(tmp_path: Path) -> None:
    failure = Failure(defense="b", composition="iid", stage="init", batch_size=8, why="why")
    report = judgeable(
        quiet(), certified(), informed(0.4, 0.5, 0.6, 0.7, stage="trained"), failures=(failure,)
    )
    (tmp_path / "report.json").write_text(report.to_json())
    assert read_judgeable(tmp_path / "report.json") == report
    assert read_judgeable(tmp_path) == report


def test_the_conditions_that_a_study_asks_for_are_those_of_its_rows() -> None:
    rows = [quiet(stage=s, batch_size=b, rounds=r) for s in ("init", "trained") for b in (1, 8)
            for r in (1, 5)]  # fmt: skip
    assert asked_for(judgeable(*rows)) == [conditions(one) for one in rows]


EDITS: dict[str, tuple[Edit, str]] = {
    "another schema": (lambda t: t.update(schema=2), "schema 1, got 2"),
    "rows without an end": (lambda t: t.update(rows=3), "not a gradguard report"),
    "a row that is none": (lambda t: t.update(rows=[[]]), "not a gradguard report"),
    "no study": (lambda t: t.update(study=[]), "its study is no table"),
    "no provenance": (lambda t: t.update(provenance=None), "its provenance is no table"),
    "half complete": (lambda t: t.update(complete="yes"), "complete must be"),
    "text for a number": (lambda t: t["rows"][0].update(advantage="0"), "advantage must be"),
    "true for a number": (lambda t: t["rows"][0].update(accuracy=True), "accuracy must be"),
    "a huge number": (lambda t: t["rows"][0].update(accuracy=10**30), "accuracy must be"),
    "a huge batch": (lambda t: t["rows"][0].update(batch_size=10**30), "batch_size must be"),
    "no batch": (lambda t: t["rows"][0].update(batch_size=0), "batch_size must be"),
    "NaN": (lambda t: t["rows"][0].update(blind_asr=float("nan")), "blind_asr must be"),
    "infinity": (lambda t: t["rows"][0].update(step_overhead=float("inf")), "step_overhead"),
    "an interval of one": (lambda t: t["rows"][0].update(worst_ci=[0.1]), "worst_ci must be two"),
    "an interval of text": (lambda t: t["rows"][0].update(worst_ci="ab"), "ci must be"),
    "ends exchanged": (lambda t: t["rows"][0].update(advantage_ci=[0.5, 0.1]), "in order"),
    "a name that breaks a line": (lambda t: t["rows"][0].update(defense="a\nb"), "printable"),
    "a name that clears a screen": (lambda t: t["rows"][0].update(stage="\x1b[2J"), "printable"),
    "a name that is none": (lambda t: t["rows"][0].update(composition=3), "printable text"),
    "attacks without scores": (lambda t: t["rows"][0].update(attacks={"a": 1}), "not a gradguard"),
    "an attack in pictures": (
        lambda t: t["rows"][0]["attacks"].update({"\x07": t["rows"][0]["attacks"]["LLG"]}),
        "printable",
    ),
    "diverged maybe": (lambda t: t["rows"][0].update(diverged=0), "diverged must be"),
    "negative bytes": (lambda t: t["rows"][0].update(bytes_per_update=-1), "bytes_per_update"),
    "epsilon alone": (lambda t: t["rows"][1].update(delta=None), "epsilon without delta"),
    "no certificate": (lambda t: t["rows"][1].update(certificate={}), "row 'DP-SGD'"),
    "a certificate above 1": (lambda t: t["rows"][1]["certificate"].update(value=2), "value"),
    "a delta of 1": (lambda t: t["rows"][1].update(delta=1.0), "delta must be below 1"),
    "a row twice": (lambda t: t["rows"].append(t["rows"][0]), "is there twice"),
    "a failure that is none": (lambda t: t.update(failures=[{}]), "not a gradguard report"),
}


@pytest.mark.parametrize("case", sorted(EDITS))
def test_a_damaged_report_is_refused_in_one_printable_line(case: str, tmp_path: Path) -> None:
    edit, fragment = EDITS[case]
    with pytest.raises(UnusableInputError) as caught:
        read_judgeable(edited(tmp_path, edit))
    said = str(caught.value)
    assert fragment in said
    assert said.startswith(str(tmp_path))
    assert said.isprintable()


def test_a_sound_report_passes_the_same_way(tmp_path: Path) -> None:
    read_judgeable(edited(tmp_path, lambda table: None))


CONTENTS = {
    "empty": b"",
    "null": b"null",
    "broken": b'{"schema": 1, "rows": [',
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "a number of many digits": b'{"schema": ' + b"9" * 10_000 + b"}",
    "a binary file": bytes(range(256)),
}


@pytest.mark.parametrize("case", sorted(CONTENTS))
def test_what_is_no_report_is_refused_in_one_printable_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(CONTENTS[case])
    with pytest.raises(UnusableInputError) as caught:
        read_judgeable(path)
    assert str(caught.value).isprintable()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, fragment in (
        (tmp_path, "holds no report.json"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "pipe", "no regular file"),
        (Path("x" * 5000), "name"),
        (Path("a\0b"), "no such file|null"),
    ):
        with pytest.raises(UnusableInputError, match=fragment):
            read_judgeable(path)
