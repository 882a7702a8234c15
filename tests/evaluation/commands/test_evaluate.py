from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from gradguard.evaluation import Report, evaluate, read_report
from gradguard.evaluation.commands.evaluate import run_evaluate
from gradguard.evaluation.output import write_report
from gradguard.evaluation.study import Study
from tests.evaluation.examples import STUDY, run, study_with


def test_a_second_ctrl_c_does_not_cost_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed_while_writing(report: Report, folder: Path) -> list[Path]:
        signal.raise_signal(signal.SIGINT)
        return write_report(report, folder)

    def one_row(study: Study, **options: object) -> Report:
        return evaluate(Study.from_dict(STUDY))

    monkeypatch.setattr("gradguard.evaluation.commands.evaluate.evaluate", one_row)
    monkeypatch.setattr(
        "gradguard.evaluation.commands.evaluate.write_report", pressed_while_writing
    )
    code = run_evaluate(None, data=None, model=None, out=tmp_path, seed=None, jobs=1)
    assert code == 0
    assert read_report(tmp_path / "report.json").complete
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def evaluated(folder: Path, *options: str, **sections: Any) -> int:
    """``gradguard evaluate`` of a small study, into ``folder/out``."""
    study = folder / "study.toml"
    study.write_text(tomli_w.dumps(study_with(**sections)))
    return run("evaluate", study, "--out", folder / "out", *options)


def test_json_is_the_report_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(tmp_path, "--json") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == (tmp_path / "out" / "report.json").read_text()
    assert Report.from_json(said.out).complete


def test_quiet_says_nothing_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(tmp_path, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert read_report(tmp_path / "out" / "report.json").complete


DIVERGES: dict[str, Any] = {
    "training": {"learning_rate": 1e20},
    "attack": {"stages": ["init", "trained"]},
}


def test_rows_that_could_not_be_made_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(tmp_path, **DIVERGES) == 1
    said = capsys.readouterr()
    assert said.err == (
        "gradguard: 2 of 4 rows could not be made; the first, 'none' (trained, skewed, B = 4): "
        "training diverges even without a defence; lower training.learning_rate\n"
    )
    report = read_report(tmp_path / "out" / "report.json")
    assert report.complete
    assert [row.stage for row in report.rows] == ["init", "init"]
    assert [failure.stage for failure in report.failures] == ["trained", "trained"]


def test_failures_do_not_spoil_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated(tmp_path, "--json", **DIVERGES) == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)["failures"]) == 2
    assert len(said.err.splitlines()) == 1


def test_resume_computes_nothing_again(tmp_path: Path) -> None:
    assert evaluated(tmp_path) == 0
    first = read_report(tmp_path / "out" / "report.json")
    log = tmp_path / "out" / "cells" / "log.jsonl"
    before = log.read_text()
    assert evaluated(tmp_path, "--resume") == 0
    assert log.read_text() == before
    assert read_report(tmp_path / "out" / "report.json").rows == first.rows  # times, too


def test_a_backend_that_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(tmp_path, "--backend", "rya") == 2
    assert "did you mean 'ray'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
