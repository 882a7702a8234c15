from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from gradguard.evaluation import read_report
from gradguard.evaluation.commands.search import chosen
from gradguard.evaluation.decisions.gate import judge
from tests.evaluation.examples import run, study_with, write_npz

SPACE = [
    {
        "name": "top-k {ratio}",
        "transform": [{"KeepTopK": {"ratio": {"low": 0.01, "high": 1.0, "log": True}}}],
    },
    {"name": "{bits} bits", "transform": [{"Quantize": {"bits": {"low": 2, "high": 8}}}]},
]
SEARCH: dict[str, Any] = {"trials": 6, "batch": 3, "defense": SPACE}
OUT = Path("gradguard-search")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)


def write_study(folder: Path, search: Any = None, **sections: Any) -> Path:
    path = folder / "study.toml"
    search = SEARCH if search is None else search
    table = study_with(**({"defense": []} | sections)) | {"search": search}
    path.write_text(tomli_w.dumps(table))
    return path


def outcome(out: Path) -> list[dict[str, Any]]:
    """What was found, but for times."""
    found = json.loads((out / "search.json").read_text())["candidates"]
    return [{k: v for k, v in c.items() if k != "step_overhead"} for c in found]


@pytest.mark.slow
def test_a_search_ends_with_a_table_a_recommendation_and_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As many trials as a gate asks for before it believes an interval.
    study = write_study(tmp_path, attack={"trials": 20, "calibration": 20})
    assert run("search", study, "--max-bytes", "5000", "--jobs", "1") == 0
    said = capsys.readouterr()
    found = json.loads((OUT / "search.json").read_text())
    assert found["recommendation"]["sentence"] in " ".join(said.out.split())
    told = [line for line in said.err.splitlines() if line.endswith(" candidates")]
    assert told == ["gradguard: 3 of 6 candidates", "gradguard: 6 of 6 candidates"]
    names = [candidate["name"] for candidate in found["candidates"]]
    assert names[0] == "none"
    assert len(names) == 7
    assert set(found["front"]) <= set(names)
    report = read_report(OUT / "report.json")
    assert [row.defense for row in report.rows] == names
    assert report.complete
    chosen = next(c for c in found["candidates"] if c["name"] == found["recommendation"]["use"])
    assert chosen["holds"]
    assert chosen["bytes_per_update"] <= 5000
    assert judge(report, defense=chosen["name"], max_advantage=chosen["advantage_most"]).holds


@pytest.mark.slow
def test_two_searches_find_the_same_with_one_process_or_two(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert run("search", study, "--out", "one", "--jobs", "1") == 0
    assert run("search", study, "--out", "two", "--jobs", "2") == 0
    assert outcome(Path("one")) == outcome(Path("two"))
    assert run("search", study, "--out", "other", "--jobs", "1", "--seed", "5") == 0
    assert outcome(Path("one")) != outcome(Path("other"))


@pytest.mark.slow
def test_a_search_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert run("search", study, "--out", "whole", "--jobs", "1") == 0
    code = "from gradguard.evaluation.cli import main; main()"
    command = [sys.executable, "-c", code, "search", str(study), "--out", "parts", "--resume"]
    command += ["--jobs", "1"]
    for batches, later, by in (
        (0, 0.3, signal.SIGKILL),
        (1, 0.1, signal.SIGKILL),
        (1, 0.0, signal.SIGINT),
    ):
        started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert started.stderr is not None
        # The first line is of the first batch's progress.
        for line in started.stderr:
            if not batches or line.endswith(" candidates\n"):
                break
        time.sleep(later)
        started.send_signal(by)
        _, said = started.communicate()
        assert started.returncode == (130 if by == signal.SIGINT else -by)
        assert (said == "") or "Traceback" not in said
    assert run("search", study, "--out", "parts", "--resume", "--jobs", "1") == 0
    assert outcome(Path("parts")) == outcome(Path("whole"))


@pytest.mark.slow
def test_a_longer_search_goes_on_with_a_shorter_one(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert run("search", study, "--trials", "4", "--jobs", "1") == 0
    shorter = outcome(OUT)
    assert run("search", study, "--resume", "--jobs", "1") == 0
    assert len(outcome(OUT)) > len(shorter)
    assert [c["name"] for c in outcome(OUT)][: len(shorter)] == [c["name"] for c in shorter]


@pytest.mark.slow
def test_json_and_quiet_say_the_same_in_their_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, SEARCH | {"trials": 1})
    assert run("search", study, "--jobs", "1", "--json") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == (OUT / "search.json").read_text()
    assert run("search", study, "--jobs", "1", "--quiet", "--resume") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert (
        said.out
        == json.loads((OUT / "search.json").read_text())["recommendation"]["sentence"] + "\n"
    )


@pytest.mark.slow
def test_where_none_is_good_enough_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, SEARCH | {"trials": 2, "min_accuracy": 1.0})
    assert run("search", study, "--jobs", "1") == 1
    assert "No candidate is sure to have an accuracy of at least 100 %; the nearest is" in (
        " ".join(capsys.readouterr().out.split())
    )


@pytest.mark.slow
def test_a_candidate_that_cannot_be_used_is_shown_as_failed_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stddev = {"choices": [1e-3, 1e37]}
    space = [{"name": "noise {stddev}", "transform": [{"AddGaussian": {"stddev": stddev}}]}]
    study = write_study(tmp_path, {"trials": 6, "batch": 3, "defense": space})
    assert run("search", study, "--jobs", "1") == 0
    by_name = {candidate["name"]: candidate for candidate in outcome(OUT)}
    assert by_name["noise 0.001"]["failed"] is None
    assert by_name["noise 1e+37"]["failed"]
    assert "noise 1e+37 failed: " in capsys.readouterr().out
    failures = read_report(OUT / "report.json").failures
    assert {failure.defense for failure in failures} <= {"noise 1e+37"}


def test_the_example_can_be_searched() -> None:
    example = Path(__file__).parents[3] / "examples" / "search.toml"
    study, settings = chosen(example, seed=None, limits={"trials": 3})
    assert [defense.name for defense in study.defenses] == ["none", "sign"]
    assert settings.trials == 3
    assert settings.constraints.max_advantage is not None
    assert sum(len(kind.ranges) for kind in settings.space.kinds) > len(settings.space.kinds)


def test_without_a_study_the_conditions_are_those_of_evaluate() -> None:
    study, settings = chosen(None, seed=3, limits={})
    assert [defense.name for defense in study.defenses] == ["none"]
    assert (study.seed, len(settings.space.kinds)) == (3, 6)


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "unknown key": ({"search": {"trails": 3}}, (), "did you mean 'trials'"),
    "unknown key of the study": ({"atack": {}}, (), "did you mean 'attack'"),
    "no trials": ({}, ("--trials", "0"), "trials of a search"),
    "a share in percent": ({}, ("--max-advantage", "10"), "max-advantage must be from 0 to 1"),
    "no number": ({}, ("--min-accuracy", "nan"), "min-accuracy must be from 0 to 1"),
    "one seed": ({"training": {"seeds": 1}}, ("--min-accuracy", "0.5"), "training.seeds"),
    "a reference out of range": (
        {"defense": [{"name": "t", "transform": [{"KeepTopK": {"ratio": 0.0}}]}]},
        (),
        "ratio",
    ),
    "data that there is not": ({"data": {"path": "none.npz"}}, (), "no such file"),
    "a range out of range": (
        {
            "search": {
                "defense": [
                    {
                        "name": "t",
                        "transform": [{"KeepTopK": {"ratio": {"low": 0.1, "high": 1.5}}}],
                    }
                ]
            }
        },
        (),
        "ratio",
    ),
}


@pytest.mark.parametrize(("sections", "options", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    options: tuple[str, ...],
    said: str,
) -> None:
    assert run("search", write_study(tmp_path, **sections), *options) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert said in shown.err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_a_search_that_could_not_begin_is_not_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"training": {"learning_rate": 1e20}, "attack": {"stages": ["trained"]}}
    assert run("search", write_study(tmp_path, **sections), "--jobs", "1") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("gradguard: training diverges")
    study = write_study(tmp_path, SEARCH | {"trials": 1})
    assert run("search", study, "--jobs", "1") == 0


def test_a_search_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OUT.mkdir()
    (OUT / "search.journal").write_text("precious\n")
    assert run("search", write_study(tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err
    assert (OUT / "search.journal").read_text() == "precious\n"


@pytest.mark.slow
def test_other_data_is_another_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_npz(tmp_path / "mine.npz")
    study = write_study(tmp_path, SEARCH | {"trials": 1}, data={"path": "mine.npz"})
    assert run("search", study, "--jobs", "1") == 0
    write_npz(path, labels=np.arange(200)[::-1] % 4)
    assert run("search", study, "--jobs", "1", "--resume") == 2
    assert "another data" in capsys.readouterr().err


def test_without_optuna_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run("search", write_study(tmp_path)) == 2
    assert "pip install 'gradguard[search]'" in capsys.readouterr().err
    assert os.listdir() == []
