"""``gradguard report`` through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradguard.evaluation import Failure
from gradguard.evaluation.output import write_report
from gradguard.evaluation.views.markdown import render_markdown
from tests.evaluation.decisions.reports import judgeable, quiet
from tests.evaluation.examples import run

REPORT = judgeable(quiet(), quiet(stage="trained"))


def test_the_table_is_printed_and_the_pages_are_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in write_report(REPORT, tmp_path)}
    kept = (tmp_path / "report.json").stat()
    for name in names - {"report.json"}:
        (tmp_path / name).write_text("old")
    assert run("report", tmp_path) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "A trained model, skewed batches of 8" in said.out
    assert str(tmp_path / "report.md") in said.out
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "report.md").read_text() == render_markdown(REPORT)
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.json").stat().st_mtime_ns == kept.st_mtime_ns


def test_a_report_of_which_only_the_json_was_kept_gets_its_pages_back(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(REPORT.to_json())
    assert run("report", tmp_path / "report.json") == 0
    assert (tmp_path / "report.html").is_file()


def test_markdown_is_printed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(REPORT.to_json())
    assert run("report", tmp_path, "--markdown") == 0
    assert capsys.readouterr().out == render_markdown(REPORT)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_report_of_nothing_but_failures_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = Failure(defense="a", composition="iid", stage="init", batch_size=8, why="no memory")
    (tmp_path / "report.json").write_text(judgeable(failures=(failure,)).to_json())
    assert run("report", tmp_path) == 0
    assert "no memory" in capsys.readouterr().out
    assert "a (init, iid, B = 8): no memory" in (tmp_path / "report.md").read_text()


def test_beside_a_file_of_another_name_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text(REPORT.to_json())
    assert run("report", tmp_path / "old.json") == 0
    assert "Written" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_a_report_without_what_is_shown_around_its_rows_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = json.loads(REPORT.to_json())
    for part in ("provenance", "study"):
        (tmp_path / "report.json").write_text(json.dumps(table | {part: {}}))
        assert run("report", tmp_path) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        assert "its study or provenance lacks" in said.err
        assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("provenance", {"wall_seconds": "abc"}),
        ("provenance", {"wall_seconds": [1]}),
        ("study", {"defense": "x"}),
        ("study", {"training": 3}),
        ("provenance", {"data": "x"}),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    part: str, values: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = json.loads(REPORT.to_json())
    (tmp_path / "report.json").write_text(json.dumps(table | {part: table[part] | values}))
    assert run("report", tmp_path) in (0, 2)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) <= 1


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(REPORT.to_json())
    (tmp_path / "report.html").mkdir()
    assert run("report", tmp_path) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "could not be written" in said.err
