from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.search.journal import Journal
from gradguard.evaluation.search.space import Point, Space
from tests.evaluation.search.closed_form import SPACE

POINTS = [Point(0, (0.01,)), Point(1, (2.5,)), Point(2, (0.3, 0.123456789))]


def test_what_is_told_is_read_back(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", space=SPACE, settings={"seed": 1}) as journal:
        for i, point in enumerate(POINTS):
            journal.tell(point, (0.1 + i, -0.9, 1 / 3))
    with Journal(tmp_path / "j", space=SPACE, settings={"seed": 1}) as journal:
        tried = journal.tried()
    assert [trial.point for trial in tried] == POINTS
    assert tried[1].values == (1.1, -0.9, 1 / 3)


def test_all_kinds_of_parameters_are_read_back(tmp_path: Path) -> None:
    space = Space.from_list(
        [
            {
                "name": "all",
                "cohort": {"low": 1, "high": 100, "log": True},
                "transform": [
                    {"KeepTopK": {"ratio": {"low": 0.1, "high": 0.5, "step": 0.1}}},
                    {"Cast": {"dtype": {"choices": ["float16", "bfloat16"]}}},
                ],
            }
        ]
    )
    with Journal(tmp_path / "j", space=space, settings={}) as journal:
        journal.tell(Point(0, (10, 3, 1)), (0.0, 0.0, 0.0))
        [tried] = journal.tried()
    assert tried.point == Point(0, (10, 3, 1))
    assert space.defense(tried.point).name == "all, cohort 10, ratio 0.4, dtype bfloat16"


def test_the_journal_is_json_line_by_line(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", space=SPACE, settings={}) as journal:
        before = len((tmp_path / "j").read_text().splitlines())
        journal.tell(POINTS[0], (0.5, -0.5, 1.0))
    lines = (tmp_path / "j").read_text().splitlines()
    # One line a trial, so that it is there with all its values or not at all.
    assert len(lines) == before + 1
    assert json.loads(lines[-1])["values"] == [0.5, -0.5, 1.0]


def test_a_search_with_another_setting_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", space=SPACE, settings={"seed": 1, "batch": 4}) as journal:
        journal.tell(POINTS[0], (0.0, 0.0, 0.0))
    with pytest.raises(UnusableInputError, match="another batch"):
        Journal(tmp_path / "j", space=SPACE, settings={"seed": 1, "batch": 8})


def test_settings_may_be_anything_that_json_can_write(tmp_path: Path) -> None:
    for _ in range(2):
        settings = {"a": (1, 2), "b": {"c": 0.1}}
        with Journal(tmp_path / "j", space=SPACE, settings=settings) as journal:
            journal.tell(POINTS[0], (0.0, 0.0, 0.0))


def test_a_journal_without_a_trial_is_removed(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", space=SPACE, settings={}):
        assert (tmp_path / "j").exists()
    assert list(tmp_path.iterdir()) == []


def test_trials_of_another_space_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", space=SPACE, settings={}) as journal:
        journal.tell(POINTS[2], (0.5, -0.5, 1.0))
    other = Space.from_list(
        [{"name": "sign", "transform": [{"Sign": {}}]}, {"name": "n", "transform": []}]
    )
    with (
        Journal(tmp_path / "j", space=other, settings={}) as journal,
        pytest.raises(UnusableInputError, match="not the journal of this search"),
    ):
        journal.tried()


@pytest.mark.parametrize(
    "content",
    [
        b"hello\nworld\n",
        b"{}\n",
        b"[1]\n{}\n",
        b"\x80\x04\xff\n\n",
        b'{"op_code": 99}\n',
        b"null\n",
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(UnusableInputError) as caught:
        Journal(tmp_path / "j", space=SPACE, settings={})
    assert "\n" not in str(caught.value)
    assert (tmp_path / "j").read_bytes().startswith(content)


def test_two_searches_do_not_share_a_journal(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with (
        Journal(tmp_path / "j", space=SPACE, settings={}),
        pytest.raises(UnusableInputError, match="another search is at work"),
    ):
        Journal(tmp_path / "j", space=SPACE, settings={})
    with Journal(tmp_path / "j", space=SPACE, settings={}):
        pass


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match="cannot be written"):
        Journal(tmp_path / "none" / "j", space=SPACE, settings={})
