"""Ctrl-C at awkward moments, things that cannot be sent, and progress that adds up."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gradguard import Defense, Grads, State
from gradguard.evaluation import InterruptedStudyError, Report, Study, UnusableInputError, evaluate
from gradguard.evaluation.commands import evaluate as command
from gradguard.evaluation.interruption import uninterrupted
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running import assemble, rows
from tests.evaluation.examples import STUDY, run, study_with
from tests.evaluation.test_cli import write_study


def interrupting(original: Any, times: list[int]) -> Any:
    """The function, which presses Ctrl-C the first so many times that it is called."""

    def pressed(*args: Any) -> Any:
        if times[0]:
            times[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    return pressed


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_after_the_last_cell_keeps_all_rows(
    monkeypatch: pytest.MonkeyPatch, presses: int
) -> None:
    """While rows are made, and again while the rows of an interrupted run are made."""
    monkeypatch.setattr(assemble, "guarantees", interrupting(rows.guarantees, [presses]))
    with pytest.raises(InterruptedStudyError) as caught:
        evaluate(Study.from_dict(STUDY))
    assert len(caught.value.report.rows) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_neither_signal_interrupts_what_must_not_be(number: int) -> None:
    before = signal.getsignal(number)
    with uninterrupted():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_an_interruption_says_whether_there_is_anything_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*args: Any, **options: Any) -> Report:
        raise KeyboardInterrupt

    study, out = write_study(tmp_path), tmp_path / "out"
    monkeypatch.setattr(command, "evaluate", pressed)
    assert run("evaluate", study, "--out", out) == 130
    assert "nothing was written" in capsys.readouterr().err
    (out / "cells").mkdir(parents=True)
    assert run("evaluate", study, "--out", out) == 130
    assert "--resume goes on from there" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "shown"), [("--json", "{"), ("--quiet", "")])
def test_a_report_that_cannot_be_written_is_shown_as_was_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    shown: str,
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_report", full)
    assert run("evaluate", write_study(tmp_path), "--out", tmp_path / "out", flag) == 2
    said = capsys.readouterr()
    assert said.out[:1] == shown
    assert "No space left on device" in said.err
    assert "--resume" in said.err


class Unsendable:
    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return grads, state

    def __getstate__(self) -> object:
        raise RuntimeError("not me")


def test_a_transform_that_cannot_be_sent_is_named() -> None:
    study = Study.from_dict(STUDY)
    with pytest.raises(UnusableInputError, match=r"defence 'own' cannot be sent to .*not me"):
        evaluate(replace(study, defenses=(Defense("own", transform=Unsendable()),)), jobs=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A worker stopped:UserWarning")
def test_a_transform_that_workers_cannot_read_is_no_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "only_here.py"
    path.write_text(
        "class Own:\n"
        "    def init(self, params): return {}\n"
        "    def update(self, grads, state): return grads, state\n"
    )
    spec = importlib.util.spec_from_file_location("only_here", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "only_here", module)
    spec.loader.exec_module(module)
    study = Study.from_dict(STUDY)
    own = Defense("own", transform=module.Own())
    with pytest.raises(UnusableInputError, match="define them in a module that can be imported"):
        evaluate(replace(study, defenses=(*study.defenses, own)), jobs=2)


class Counts(Silent):
    def __init__(self) -> None:
        self.total = self.done = 0

    def begin(self, total: int, done: int = 0) -> None:
        self.total, self.done = total, done

    def advance(self) -> None:
        self.done += 1


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("resume", [False, True])
def test_progress_reaches_its_total_and_no_more(tmp_path: Path, jobs: int, resume: bool) -> None:
    study = Study.from_dict(study_with(attack={"stages": ["init", "trained"]}))
    for again in (False, resume):
        counts = Counts()
        evaluate(study, store=tmp_path, jobs=jobs, progress=counts, resume=again)
        assert counts.done == counts.total > 0
