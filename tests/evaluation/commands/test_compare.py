"""``gradguard compare`` through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradguard.evaluation import Failure, Report
from tests.evaluation.decisions.reports import judgeable, quiet
from tests.evaluation.examples import run


def written(folder: Path, name: str, report: Report) -> Path:
    path = folder / name
    path.write_text(report.to_json())
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return written(tmp_path, "old.json", judgeable(quiet(), quiet(batch_size=16)))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    worse = quiet(advantage=0.6, advantage_ci=(0.5, 0.7))
    other = quiet(batch_size=16, bytes_per_update=30.0)
    return written(tmp_path, "new.json", judgeable(worse, other))


def test_the_exit_code_says_whether_something_got_worse(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", old, old) == 0
    assert "nothing got worse" in capsys.readouterr().out
    assert run("compare", old, new) == 1
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "gradguard compare: something got worse"
    assert lines[1].startswith("  worse: advantage of 'top-k 1 %' 0.033 -> 0.600; more than 0.1")
    assert lines[2].startswith("  better: bytes of 'top-k 1 %' 32.0 -> 30.0 (init, skewed, B = 16)")
    assert "1 better, 1 worse, of 2 rows in both" in said.out
    assert "step" not in said.out


def test_a_row_that_can_no_longer_be_made_is_named(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = Failure(
        defense="top-k 1 %", composition="skewed", stage="init", batch_size=8, why="no memory"
    )
    part = judgeable(quiet(batch_size=16), failures=(failure,))
    assert run("compare", old, written(tmp_path, "part.json", part)) == 1
    assert (
        "worse: top-k 1 % (init, skewed, B = 8) could not be made in B" in capsys.readouterr().out
    )


def test_the_headline_claims_nothing_of_what_was_not_compared(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = written(tmp_path, "fewer.json", judgeable(quiet()))
    assert run("compare", old, fewer) == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        "gradguard compare: nothing that was compared got worse; not compared: rows of A that B "
        "lacks (1)"
    )
    assert run("compare", old, fewer, "--format", "json") == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "not compared"
    one = [
        written(tmp_path, f"{share}", judgeable(quiet(accuracy=share, accuracy_ci=None)))
        for share in (0.95, 0.1)
    ]
    assert run("compare", *one, "--format", "github") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("::warning title=gradguard compare::not compared: accuracy of")
    assert "nothing that was compared got worse; not compared: accuracy (1);" in lines[-1]


def test_json_has_every_row_and_github_annotations(
    old: Path,
    new: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "page"))
    assert run("compare", old, new, "--format", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "worse"
    assert [change["better"] for change in found["changes"]] == [False, True]
    assert not (tmp_path / "page").exists()
    assert run("compare", old, new, "--format", "github") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("::error title=gradguard compare::worse: advantage")
    assert lines[-1].startswith("::notice title=gradguard compare::something got worse; 1 better")
    assert (
        "| **worse** | advantage | top-k 1 % | 0.033 | 0.600 |" in (tmp_path / "page").read_text()
    )


def test_long_lists_are_cut_where_people_read_and_not_in_json(
    tmp_path: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = judgeable(*(quiet(batch_size=size) for size in (8, *range(16, 35))))
    path = written(tmp_path, "many.json", many)
    assert run("compare", old, path) == 0
    assert "only in B: 13 more" in capsys.readouterr().out
    assert run("compare", old, path, "--format", "json") == 0
    assert len(json.loads(capsys.readouterr().out)["only_after"]) == 18


def test_reports_that_cannot_be_compared_are_exit_code_2(
    tmp_path: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = written(tmp_path, "part.json", judgeable(quiet(), complete=False))
    other = written(tmp_path, "other.json", judgeable(quiet(defense="other")))
    for path, fragment in ((part, "second report is incomplete"), (other, "no row is in both")):
        assert run("compare", old, path, "--format", "github") == 2
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1
        assert fragment in said.err
        assert said.out.startswith("::error title=gradguard compare::could not be judged: ")
