"""The help of every command, and what every command says to bad input."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from gradguard.evaluation.cli import COMMANDS, EXAMPLES, app
from tests.evaluation.decisions.reports import judgeable, quiet
from tests.evaluation.examples import run

GROUP: Any = typer.main.get_command(app)
NAMES = sorted(COMMANDS)


def helped(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*([name] if name else []), "--help") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_help_ends_with_examples(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = helped(name, capsys, monkeypatch)
    assert EXAMPLES.get(name), f"add examples of {name!r} to EXAMPLES in evaluation/cli.py"
    _, _, block = text.partition("Examples:\n")
    whole = re.sub(r" \\\n +", " ", block)  # a long one goes on in the next line
    assert [line.strip() for line in whole.splitlines() if line] == list(EXAMPLES[name])


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_understood(name: str) -> None:
    for line in EXAMPLES[name]:
        program, used, *arguments = shlex.split(line)
        assert (program, used) == ("gradguard", name)
        GROUP.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_every_help_is_readable_in_eighty_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = helped(name, capsys, monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    for markup in ("\\[", "[bold", "[/", "\x1b", "\b"):
        assert markup not in text


def test_every_command_says_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = helped("", capsys, monkeypatch)
    for name in NAMES:
        assert any(line.split()[0] == name and len(line.split()) > 3
                   for line in text.splitlines() if line.split())  # fmt: skip


@pytest.mark.slow
def test_a_shell_completes_commands_and_options() -> None:
    program = [str(Path(sys.executable).parent / "gradguard")]
    for typed, position, expected in (
        ("gradguard ga", 1, "gate"),
        ("gradguard gate --max", 2, "--max-advantage"),
    ):
        told = {"COMP_WORDS": typed, "COMP_CWORD": str(position)}
        done = subprocess.run(
            program,
            env=os.environ | told | {"_GRADGUARD_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
        )
        assert expected in done.stdout.split(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_shown(shell: str) -> None:
    # The shell is named: typer would else ask which one has started these tests.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("gradguard"), "--show-completion", shell],
        env=os.environ | named,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_GRADGUARD_COMPLETE" in done.stdout


FILES: dict[str, tuple[list[str], list[str]]] = {
    "report": (["report", "PATH"], []),
    "gate": (["gate", "PATH"], ["--defense", "top-k 1 %", "--max-advantage", "0.2"]),
    "compare": (["compare", "GOOD", "PATH"], []),
    "compare with it first": (["compare", "PATH", "GOOD"], []),
}
CONTENTS: dict[str, bytes | None] = {
    "missing file": None,
    "empty": b"",
    "broken JSON": b'{"schema": 1, "rows": [{]}',
    "another schema": b'{"schema": 99}',
    "nothing": b"null",
    "no report": b'{"schema": 1, "rows": [{"a": 1}]}',
    "no text": b"\xff\x00\x01",
    "a huge number": b'{"schema": 1' + b"0" * 5000 + b"}",
    "nested too deeply": b"[" * 100_000,
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What one refusal says: one line on stderr, exit code 2 and nothing on stdout."""
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("gradguard: ")
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("command", sorted(FILES))
@pytest.mark.parametrize("case", sorted(CONTENTS))
def test_bad_files_are_refused_in_one_line(
    command: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = CONTENTS[case]
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    (tmp_path / "good.json").write_text(judgeable(quiet()).to_json())
    places = {"PATH": str(tmp_path / "report.json"), "GOOD": str(tmp_path / "good.json")}
    words, options = FILES[command]
    refused(capsys, *(places.get(word, word) for word in words), *options)


@pytest.mark.parametrize("command", sorted(FILES))
def test_a_folder_without_a_report_is_refused_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.json").write_text(judgeable(quiet()).to_json())
    places = {"PATH": str(tmp_path), "GOOD": str(tmp_path / "good.json")}
    words, options = FILES[command]
    said = refused(capsys, *(places.get(word, word) for word in words), *options)
    assert "holds no report.json" in said


GATE = ["gate", "PATH", "--defense", "top-k 1 %", "--max-advantage"]
ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "no report": (["gate"], "REPORT"),
    "no defence": (["gate", "PATH", "--max-advantage", "0.2"], "--defense"),
    "no limit": (["gate", "PATH", "--defense", "a"], "--max-advantage"),
    "unknown defence": (["gate", "PATH", "--defense", "a", "--max-advantage", "1"], "Known"),
    "limit in words": ([*GATE, "low"], "--max-advantage"),
    "limit NaN": ([*GATE, "nan"], "from 0 to 1"),
    "limit infinite": ([*GATE, "inf"], "from 0 to 1"),
    "limit in percent": ([*GATE, "20"], "0.2 is a fifth"),
    "huge limit": ([*GATE, "1" * 400], "from 0 to 1"),
    "negative limit": ([*GATE, "-0.1"], "from 0 to 1"),
    "accuracy NaN": ([*GATE, "1", "--min-accuracy", "nan"], "min-accuracy"),
    "accuracy in percent": ([*GATE, "1", "--min-accuracy", "90"], "0.9 is 90 %"),
    "epsilon infinite": ([*GATE, "1", "--max-epsilon", "inf"], "finite"),
    "epsilon negative": ([*GATE, "1", "--max-epsilon", "-1"], "at least 0"),
    "unknown format": ([*GATE, "1", "--format", "xml"], "xml"),
    "one report": (["compare", "PATH"], "B.json"),
    "three reports": (["compare", "PATH", "PATH", "PATH"], "unexpected extra argument"),
    "unknown option": (["report", "PATH", "--mrkdown"], "--mrkdown"),
}


@pytest.mark.parametrize("case", sorted(ARGUMENTS))
def test_bad_arguments_are_refused_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(judgeable(quiet()).to_json())
    words, fragment = ARGUMENTS[case]
    said = refused(capsys, *(str(path) if word == "PATH" else word for word in words))
    assert fragment in said
