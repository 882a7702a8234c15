from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from gradguard import Defense
from gradguard.evaluation import read_report
from tests.evaluation.examples import run, study_with, write_npz

GRADGUARD = str(Path(sys.executable).parent / "gradguard")


def write_study(folder: Path, **sections: Any) -> Path:
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(study_with(**sections)))
    return path


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_study_gives_a_table_and_a_whole_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", write_study(tmp_path), "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert said.err == ""
    for shown in ("none", "top-k", "An untrained model, skewed batches of 4", "report.html"):
        assert shown in said.out
    report = read_report(tmp_path / "out" / "report.json")
    assert [row.defense for row in report.rows] == ["none", "top-k"]
    assert report.complete


def test_options_override_the_study(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "mine.npz")
    (tmp_path / "work" / "own_model_of_mine.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    model = "own_model_of_mine:make"
    study = write_study(tmp_path)
    assert run("evaluate", study, "--data", data, "--model", model, "--seed", "7") == 0
    report = read_report(Path("gradguard-report/report.json"))
    assert report.provenance["seed"] == 7
    assert report.provenance["data"]["name"] == "mine"
    assert report.rows[0].dense_bytes == 4 * (64 * 4 + 4)


BAD_STUDIES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"attack": {"trails": 3}}, "did you mean 'trials'"),
    "ratio 0": (
        {"defense": [{"name": "t", "transform": [{"KeepTopK": {"ratio": 0.0}}]}]},
        "ratio",
    ),
    "ratio above 1": (
        {"defense": [{"name": "t", "transform": [{"KeepTopK": {"ratio": 1.5}}]}]},
        "ratio",
    ),
    "negative noise": (
        {"defense": [{"name": "t", "transform": [{"AddGaussian": {"stddev": -1.0}}]}]},
        "stddev",
    ),
    "pattern of no parameter": (
        {"defense": [{"name": "t", "transform": [{"Withhold": {"pattern": "tail.*"}}]}]},
        "matches no parameter",
    ),
    "batch larger than the data": ({"attack": {"batch_sizes": [5000]}}, "larger than the data"),
    "training batch too large": ({"training": {"batch_size": 5000}}, "training batch of 5000"),
    "unknown attacker": ({"attack": {"attackers": ["LLGG"]}}, "did you mean 'LLG'"),
    "no seeds": ({"training": {"seeds": 0}}, "training.seeds"),
    "list in a list": ({"attack": {"stages": [["init"]]}}, "unknown attack stage"),
    "table for an attacker": ({"attack": {"attackers": [{"LLG": 1}]}}, "unknown attacker"),
    "table for a model": ({"model": {"name": {"mlp": 1}}}, "unknown model"),
    "name too long for a file": ({"data": {"path": "x" * 300}}, "too long"),
    "line break in a name": (
        {"defense": [{"name": "a\nb", "transform": []}]},
        "use printable characters",
    ),
    "noise beyond float32": (
        {"defense": [{"name": "t", "transform": [{"AddGaussian": {"stddev": 1e308}}]}]},
        "expected finite numbers",
    ),
    "no defence": ({"defense": []}, "at least one"),
    "missing data": ({"data": {"path": "none.npz"}}, "no such file"),
    "unknown model": ({"model": {"name": "mlpp"}}, "did you mean 'mlp'"),
    "learning rate that diverges": (
        {"training": {"learning_rate": 1e20}, "attack": {"stages": ["trained"]}},
        "training diverges even without a defence",
    ),
}


def check_refused(code: int, said: Any, fragment: str) -> None:
    """Exit code 2, one line on stderr, nothing on stdout, nothing written."""
    assert code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("gradguard: ")
    assert fragment in said.err
    # Units that were finished before a study turned out to be unusable may stay.
    assert [p for p in Path.cwd().rglob("*") if p.is_file() and "cells" not in p.parts] == []


@pytest.mark.parametrize("case", sorted(BAD_STUDIES))
def test_a_bad_study_is_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections, fragment = BAD_STUDIES[case]
    code = run("evaluate", write_study(tmp_path, **sections))
    check_refused(code, capsys.readouterr(), fragment)


BAD_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "add 'labels'"),
    "negative label": ({"labels": [-1] * 100 + [1] * 100}, "label -1 is outside"),
    "gap in the labels": ({"labels": [0] * 100 + [2] * 100}, "without gaps"),
    "other length": ({"labels": [0, 1] * 50}, "200 images but 100 labels"),
    "label of a billion": ({"labels": [0] * 100 + [10**9] * 100}, "too few for classes"),
    "label beyond any counter": ({"labels": [0] * 100 + [2**63 - 1] * 100}, "too few"),
    "pickled": ({"labels": [None] * 200}, "pickled objects are not read"),
}


@pytest.mark.parametrize("case", sorted(BAD_DATA))
def test_bad_data_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, fragment = BAD_DATA[case]
    path = write_npz(tmp_path / "bad.npz", **changes)
    check_refused(run("evaluate", "--data", path), capsys.readouterr(), fragment)


BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "missing study": (["evaluate", "none.toml"], "no such file"),
    "missing data": (["evaluate", "--data", "none.npz"], "no such file"),
    "unknown module": (["evaluate", "--model", "no_such_module:make"], "No module named"),
    "no factory": (["evaluate", "--model", "math"], "must be 'module:callable'"),
    "no model": (["evaluate", "--model", "math:sqrt"], "model"),
    "no head": (["evaluate", "--model", "torch.nn:Identity"], "expected outputs"),
    "negative seed": (["evaluate", "--seed", "-1"], "seed must be"),
    "seed in words": (["evaluate", "--seed", "one"], "seed"),
    "no process": (["evaluate", "--jobs", "0"], "jobs must be"),
    "unknown option": (["evaluate", "--sede", "1"], "--sede"),
    "unknown command": (["evalaute"], "evalaute"),
}


@pytest.mark.parametrize("case", sorted(BAD_ARGUMENTS))
def test_bad_arguments_are_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, fragment = BAD_ARGUMENTS[case]
    check_refused(run(*arguments), capsys.readouterr(), fragment)


def test_broken_toml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.toml").write_text("[attack\ntrials = 3")
    code = run("evaluate", tmp_path / "broken.toml")
    check_refused(code, capsys.readouterr(), "not valid TOML")


def test_toml_nested_too_deeply_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 20000)
    code = run("evaluate", tmp_path / "deep.toml")
    check_refused(code, capsys.readouterr(), "nested too deeply")


def test_an_infinite_bound_is_in_the_report_as_text(tmp_path: Path) -> None:
    unbounded = {"name": "t", "transform": [{"ClipByGlobalNorm": {"max_norm": float("inf")}}]}
    assert run("evaluate", write_study(tmp_path, defense=[unbounded])) == 0
    text = Path("gradguard-report/report.json").read_text()
    (written,) = json.loads(text)["study"]["defense"]
    assert written["transform"] == [{"ClipByGlobalNorm": {"max_norm": "inf"}}]
    assert "Infinity" not in text
    assert Defense.from_json(json.dumps(written)) == Defense.from_dict(unbounded)


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_report_that_cannot_be_shown_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone())
        assert run("evaluate", write_study(tmp_path)) == 2
    assert "not shown (No space left on device)" in capsys.readouterr().err
    assert len(read_report(Path("gradguard-report/report.json")).rows) == 2


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    code = run("evaluate", write_study(tmp_path), "--out", tmp_path / "file")
    check_refused(code, capsys.readouterr(), "cannot write there")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_diverging_defence_is_a_row_and_not_an_error(tmp_path: Path) -> None:
    loud = {"name": "loud", "transform": [{"AddGaussian": {"stddev": 1e25}}]}
    assert run("evaluate", write_study(tmp_path, defense=[loud])) == 0
    text = Path("gradguard-report/report.json").read_text()
    (row,) = json.loads(text)["rows"]
    assert row["diverged"] is True
    assert row["accuracy"] == 0.0
    assert "NaN" not in text


def test_help_and_version_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("gradguard ")
    assert run("evaluate", "--help") == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.slow
def test_the_installed_command_refuses_bad_input_without_a_traceback(tmp_path: Path) -> None:
    study = write_study(tmp_path, attack={"trails": 3})
    done = subprocess.run(
        [GRADGUARD, "evaluate", str(study)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


COUNTING_MODEL = """
from torch import nn
def make(shape, classes):
    with open("built", "a") as file:
        file.write(".")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def interrupt_after(
    models: int, study: Path, *, jobs: int = 1, by: int = signal.SIGINT
) -> subprocess.CompletedProcess[str]:
    """The console script, interrupted as by Ctrl-C once it has built so many models."""
    Path("counting_model.py").write_text(COUNTING_MODEL)
    built = Path("built")
    arguments = [GRADGUARD, "evaluate", str(study), "--jobs", str(jobs)]
    arguments += ["--model", "counting_model:make"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while process.poll() is None and not (built.exists() and built.stat().st_size >= models):
            time.sleep(0.02)
        process.send_signal(by)
        said, complained = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, said, complained)


@pytest.mark.slow
def test_ctrl_c_before_the_first_row_writes_no_report(tmp_path: Path) -> None:
    # One to try out the study, two for the hashes of each seed's model; the sixth is trained.
    done = interrupt_after(6, write_study(tmp_path, model={}, training={"steps": 10**7}))
    assert done.returncode == 130
    assert done.stdout == ""
    assert "--resume goes on from there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("gradguard-report/report.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "by"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)]
)
def test_ctrl_c_and_sigterm_keep_what_was_finished(tmp_path: Path, jobs: int, by: int) -> None:
    many = [f"dirichlet:{i}" for i in range(1, 500)]
    study = write_study(tmp_path, model={}, attack={"compositions": many})
    done = interrupt_after(60 * jobs, study, jobs=jobs, by=by)
    assert done.returncode == 130
    assert "--resume goes on from there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Interrupted: only the finished rows are shown." in done.stdout
    report = read_report(Path("gradguard-report/report.json"))
    assert not report.complete
    assert 1 <= len(report.rows) < 998
    assert Path("gradguard-report/report.html").is_file()
