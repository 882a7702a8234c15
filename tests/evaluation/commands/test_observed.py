"""``gradguard evaluate STUDY --observed FOLDER`` from the command line."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import tomli_w

from gradguard.evaluation import UnusableInputError
from gradguard.evaluation.cli import main
from gradguard.evaluation.commands.evaluate import STORE
from gradguard.evaluation.observed.result import read_observed
from gradguard.evaluation.report import read_report
from tests.evaluation.observed.federation import bench_of, federate, study_of
from tests.evaluation.observed.test_observe import NONE, QUICK, TOP


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of two defences beside a recording of one."""
    made = study_of(TOP, NONE, **QUICK)
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(made.to_dict()))
    federate(tmp_path / "seen", bench_of(made), TOP, clients=3, rounds=2)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *map(str, arguments)])
    return int(end.value.code or 0)


def test_it_prints_and_writes_what_it_found(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = run(study, "--observed", tmp_path / "seen", "--defense", "top-k", "--out", out)
    said = capsys.readouterr().out
    assert code == 0
    assert "each alone" in said
    assert "Recorded: 6 messages of 3 clients in 2 rounds, defence 'top-k'." in said
    assert sorted(path.name for path in out.iterdir()) == ["observed.json", "observed.md"]
    report = read_observed(out / "observed.json")
    assert report.rows[0].messages == 6
    assert (out / "observed.md").read_text().startswith("# What the server saw")


def test_json_is_all_that_is_printed_if_asked_for(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out = tmp_path / "seen", tmp_path / "out"
    assert run(study, "--observed", seen, "--defense", "top-k", "--out", out, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert table["schema"] == "observed 1"
    assert {row["verdict"] for row in table["rows"]} <= {
        *("leaks", "not shown", "unclear", "not measured"),
    }


def test_a_gate_does_not_take_it_for_a_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(study, "--observed", tmp_path / "seen", "--defense", "top-k", "--out", out, "--quiet")
    for path in (out, out / "observed.json"):
        with pytest.raises(SystemExit) as end:
            main(["gate", str(path), "--defense", "top-k", "--max-advantage", "1"])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UnusableInputError, match="expected a report of schema 1"):
        read_report(out / "observed.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--observed", "none"], "which defence was deployed? Say --defense with one of"),
        (["--observed", "none", "--defense", "top-k"], "none: no such folder"),
        (["--observed", ".", "--defense", "top-k"], "not a recording"),
        (["--observed", ".", "--defense", "tok-p"], "did you mean 'top-k'"),
        (["--observed", ".", "--resume"], "leave out --resume"),
        (["--observed", ".", "--jobs", "2"], "leave out --jobs"),
        (["--observed", ".", "--backend", "ray"], "leave out --backend"),
        (["--defense", "top-k"], "--defense goes with --observed"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    study: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run(study, *arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("name", ["observed.json", "observed.md"])
def test_a_folder_of_a_reports_name_is_refused_before_the_work(
    study: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    assert run(study, "--observed", tmp_path / "seen", "--defense", "top-k", "--out", out) == 2
    assert f"({name} is a folder)" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [name]


def test_an_early_ctrl_c_names_no_option_that_is_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another study's work lies in the folder, which --resume would be about."""
    out, slow = tmp_path / "out", tmp_path / "slow.toml"
    (out / STORE).mkdir(parents=True)
    os.mkfifo(slow)  # reading it lasts until someone writes
    timer = threading.Timer(0.3, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    timer.start()
    assert run(slow, "--observed", tmp_path / "seen", "--out", out) == 130
    timer.join()
    assert capsys.readouterr().err == (
        "gradguard: interrupted; no work was done, and nothing was written\n"
    )


def test_a_damaged_message_leaves_no_half_report(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "seen" / "round-0002" / "client-1.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    out = tmp_path / "out"
    code = run(study, "--observed", tmp_path / "seen", "--defense", "top-k", "--out", out)
    assert code == 2
    assert "holds NaN or infinity" in capsys.readouterr().err
    assert not out.exists()
