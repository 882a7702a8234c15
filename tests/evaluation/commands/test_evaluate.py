from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gradguard.evaluation import Report, evaluate, read_report
from gradguard.evaluation.commands.evaluate import run_evaluate
from gradguard.evaluation.output import write_report
from gradguard.evaluation.study import Study
from tests.evaluation.examples import STUDY


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
