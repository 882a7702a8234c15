from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gradguard.evaluation import UnusableInputError, read_report
from gradguard.evaluation.output import check_writable, write_atomically, write_report
from tests.evaluation.examples import report, row


def test_checking_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UnusableInputError, match="cannot write there"):
            check_writable(folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.json"
    target.write_bytes(b"old")

    def fail(source: object, destination: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert target.read_bytes() == b"old"


def test_a_written_file_can_be_shared(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(modes) == 1


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    original = report(row())
    paths = write_report(original, tmp_path / "out")
    assert sorted(p.name for p in paths) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert {p.name for p in paths} >= {"report.json", "report.html", "tradeoff.png", "tradeoff.svg"}
    assert read_report(tmp_path / "out" / "report.json") == original


def test_a_folder_with_a_folder_in_the_place_of_a_file_is_refused_beforehand(
    tmp_path: Path,
) -> None:
    (tmp_path / "report.html").mkdir()
    for folder in (tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(UnusableInputError, match="cannot write there"):
            check_writable(folder)


def test_a_name_that_is_no_utf8_does_not_cost_the_report(tmp_path: Path) -> None:
    original = report(row(), study={"training": {"seeds": 2}, "defense": [], "data": "\udcff.npz"})
    write_report(original, tmp_path)
    assert read_report(tmp_path / "report.json") == original
