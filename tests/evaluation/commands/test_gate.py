"""``gradguard gate`` through the real command line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradguard.evaluation import Failure, Report
from gradguard.evaluation.commands.gate import summary, words
from gradguard.evaluation.decisions.gate import judge
from tests.evaluation.decisions.reports import judgeable, quiet
from tests.evaluation.examples import run

NAME = "top-k 1 %"


def written(folder: Path, report: Report | None = None) -> Path:
    path = folder / "report.json"
    path.write_text((report or judgeable(quiet(), quiet(stage="trained"))).to_json())
    return path


def gate(path: Path, *options: str, limit: float = 0.2, name: str = NAME) -> int:
    return run("gate", path, "--defense", name, "--max-advantage", str(limit), *options)


@pytest.fixture(autouse=True)
def _no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def test_what_holds_is_exit_code_0_and_what_leaks_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path)
    assert gate(path) == 0
    assert gate(tmp_path) == 0
    assert "'top-k 1 %' HOLDS" in capsys.readouterr().out
    assert gate(path, limit=0.05) == 1
    said = capsys.readouterr()
    assert said.err == ""
    assert "'top-k 1 %' FAILS" in said.out
    assert (
        "advantage up to 0.080, 0.05 allowed, 0.030 beyond (LLG; init, skewed, B = 8)" in said.out
    )
    assert "2 rows judged" in said.out


def test_a_number_beyond_a_limit_never_looks_as_if_it_held() -> None:
    report = judgeable(quiet(advantage_ci=(0.0, 0.2 + 1e-6), accuracy_ci=(0.9 - 1e-6, 0.95)))
    said = words(judge(report, defense=NAME, max_advantage=0.2, min_accuracy=0.9))
    assert "advantage up to 0.201, 0.2 allowed, 0.001 beyond" in said
    assert "accuracy down to 0.899, 0.9 wanted, 0.001 beyond" in said


def test_an_epsilon_that_is_not_there_is_said() -> None:
    report = judgeable(quiet())
    assert "epsilon none (no differential privacy), 3 allowed, beyond any" in words(
        judge(report, defense=NAME, max_advantage=0.2, max_epsilon=3)
    )
    report = judgeable(quiet(epsilon=math.inf, delta=1e-5))
    assert "epsilon unbounded, 3 allowed" in words(
        judge(report, defense=NAME, max_advantage=0.2, max_epsilon=3)
    )


def test_the_json_is_stable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(written(tmp_path), "--min-accuracy", "0.8", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        *("command", "schema", "verdict", "defense", "limits", "deciding", "findings", "notes")
    ]
    assert found["verdict"] == "holds"
    assert found["limits"] == {"max_advantage": 0.2, "min_accuracy": 0.8, "max_epsilon": None}
    assert len(found["findings"]) == 4
    assert found["deciding"][0] == {
        "quantity": "advantage",
        **{"stage": "init", "composition": "skewed", "batch_size": 8, "rounds": 1},
        **{"attack": "LLG", "found": 0.08, "limit": 0.2, "holds": True},
    }


def test_github_gets_an_annotation_and_a_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    path = written(tmp_path)
    assert gate(path, "--format", "github") == 0
    said = capsys.readouterr().out
    assert said.startswith("::notice title=gradguard gate::gradguard gate: 'top-k 1 %25' HOLDS%0A")
    assert len(said.splitlines()) == 1
    assert gate(path, "--format", "github", limit=0.05) == 1
    assert capsys.readouterr().out.startswith("::error title=gradguard gate::")
    text = page.read_text()
    assert "### gradguard gate: top-k 1 % holds" in text
    assert (
        "| **fails** | advantage | 0.080 | 0.05 | 0.030 beyond | LLG; init, skewed, B = 8 |" in text
    )


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert gate(written(tmp_path), "--format", "github", limit=0.05) == 1
    assert (
        "::warning title=gradguard gate::GITHUB_STEP_SUMMARY could not" in capsys.readouterr().out
    )


def test_a_name_cannot_add_a_workflow_command_or_a_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a|b, ::error::x %0A"
    report = judgeable(quiet(defense=name))
    for form in ("text", "github"):
        gate(written(tmp_path, report), "--format", form, name=name)
        lines = capsys.readouterr().out.splitlines()
        assert not any(line.startswith("::error") for line in lines)
    assert "a\\|b" in summary(judge(report, defense=name, max_advantage=0.2))


HOSTILE = "\x1b[2J\x1b]0;x\x07\u2028boom\n::error::x ##[error]y"


def test_words_of_a_stranger_reach_no_terminal_and_no_log_as_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(written(tmp_path, judgeable(quiet(skipped={"RLG": HOSTILE})))) == 0
    assert run("compare", tmp_path / "report.json", tmp_path / "report.json") == 0
    failure = Failure(defense=NAME, composition="skewed", stage="init", batch_size=8, why=HOSTILE)
    assert gate(written(tmp_path, judgeable(failures=(failure,)))) == 2
    lost = quiet(skipped={"LLG": HOSTILE}, worst_attack="EBI")
    (tmp_path / "lost").write_text(judgeable(lost).to_json())
    written(tmp_path, judgeable(quiet()))
    assert run("compare", tmp_path / "report.json", tmp_path / "lost") == 0
    said = capsys.readouterr()
    assert "boom" in said.out
    assert "boom" in said.err
    for line in (*said.out.split("\n"), *said.err.split("\n")):
        assert line.isprintable()
        assert not line.lstrip().startswith("::")
        assert "##[" not in line


@pytest.mark.parametrize("command", ["gate", "compare", "markdown", "table"])
def test_a_name_that_the_output_cannot_encode_costs_no_verdict(
    command: str, tmp_path: Path
) -> None:
    path = str(written(tmp_path, judgeable(quiet(defense="🔒"))))
    arguments = {
        "gate": ["gate", path, "--defense", "🔒", "--max-advantage", "0.2"],
        "compare": ["compare", path, path],
        "markdown": ["report", path, "--markdown"],
        "table": ["report", path],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", "from gradguard.evaluation.cli import main; main()", *arguments],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert command == "compare" or rb"\U0001f512" in done.stdout


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "incomplete": ({"complete": False}, "incomplete"),
    "no rows": ({"rows": ()}, "lacks"),
}


@pytest.mark.parametrize("form", ["text", "json", "github"])
@pytest.mark.parametrize("case", sorted(UNUSABLE))
def test_what_cannot_be_judged_is_exit_code_2_in_every_form(
    case: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, fragment = UNUSABLE[case]
    code = gate(written(tmp_path, judgeable(quiet(), **changes)), "--format", form)
    assert code == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert fragment in said.err
    if form == "json":
        found = json.loads(said.out)
        assert (found["verdict"], found["schema"]) == ("unusable", 1)
        assert fragment in found["why"]
    elif form == "github":
        assert said.out.startswith("::error title=gradguard gate::could not be judged: ")
    else:
        assert said.out == ""


def test_an_unknown_defence_is_answered_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(written(tmp_path), name="topk 1%") == 2
    assert "did you mean 'top-k 1 %'" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_verdict_that_cannot_be_written_is_never_exit_code_0(tmp_path: Path) -> None:
    program = "from gradguard.evaluation.cli import main; main()"
    arguments = ["gate", str(written(tmp_path)), "--defense", NAME, "--max-advantage", "1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "gradguard: what was found cannot be written (No space left on device)\n"
    )
