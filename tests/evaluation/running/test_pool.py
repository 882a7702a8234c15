"""The same rows wherever they are computed, and what happens to a worker that dies."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradguard import Defense
from gradguard.evaluation import Report, Study, UnusableInputError, evaluate
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running.store import LOG
from tests.evaluation.examples import STUDY, study_with
from tests.evaluation.running.test_mishaps import Dies


def timeless(report: Report) -> list[Any]:
    return [replace(row, step_overhead=1.0) for row in report.rows]


def computed(store: Path) -> Counter[str]:
    """How often each unit was computed, by its hash.

    What a process took because another had just computed it is a line of its own, without one.
    """
    lines = [json.loads(line) for line in (store / LOG).read_text().splitlines()]
    return Counter(line["key"] for line in lines if not line.get("taken"))


def noisy() -> Study:
    noise = {"name": "noise", "transform": [{"AddGaussian": {"stddev": 0.01}}]}
    attack: dict[str, Any] = {"stages": ["init", "trained"], "simulated": 40}
    attack |= {"attackers": ["LLG", "TemplateRegression(all)"]}
    return Study.from_dict(study_with(attack=attack, defense=[*STUDY["defense"], noise]))


@pytest.fixture(scope="module")
def here() -> list[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # which sums in another order, if it is let
    try:
        return timeless(evaluate(noisy()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 3])
def test_processes_give_the_rows_of_one_process(here: list[Any], jobs: int, tmp_path: Path) -> None:
    assert timeless(evaluate(noisy(), jobs=jobs, store=tmp_path)) == here
    assert set(computed(tmp_path).values()) == {1}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning")
def test_a_real_ray_cluster_gives_the_rows_of_one_process(here: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert timeless(evaluate(noisy(), jobs=2, backend="ray", store=tmp_path)) == here
    assert set(computed(tmp_path).values()) == {1}
    # And a second backend takes what the first has left.
    again = evaluate(noisy(), jobs=2, store=tmp_path, resume=True)
    assert timeless(again) == here
    assert set(computed(tmp_path).values()) == {1}


@pytest.mark.slow
def test_a_new_defence_computes_only_what_is_new(here: list[Any], tmp_path: Path) -> None:
    study = noisy()
    fewer = replace(study, defenses=study.defenses[:2])
    evaluate(fewer, store=tmp_path)
    before = computed(tmp_path)
    assert timeless(evaluate(study, store=tmp_path, resume=True)) == here
    after = computed(tmp_path)
    assert before.items() <= after.items()
    assert set(after.values()) == {1}
    # Two trainings, one weighing, two stages at two seeds.
    assert len(after) - len(before) == 7


def test_without_resume_everything_is_computed_anew(tmp_path: Path) -> None:
    study = Study.from_dict(STUDY)
    first = evaluate(study, store=tmp_path)
    assert timeless(evaluate(study, store=tmp_path)) == timeless(first)
    assert set(computed(tmp_path).values()) == {2}
    assert evaluate(study, store=tmp_path, resume=True).rows != ()
    assert set(computed(tmp_path).values()) == {2}


def test_a_result_that_was_tampered_with_is_computed_anew(tmp_path: Path) -> None:
    study = Study.from_dict(STUDY)
    first = evaluate(study, store=tmp_path)
    for path in tmp_path.glob("*/*.json"):
        path.write_text(path.read_text().replace("1.0", "0.0"))
    progress = Notes()
    again = evaluate(study, store=tmp_path, resume=True, progress=progress)
    assert timeless(again) == timeless(first)
    [said] = progress.said
    assert "results in" in said
    assert "cannot be believed" in said


def test_a_model_that_was_tampered_with_is_trained_anew(tmp_path: Path) -> None:
    study = Study.from_dict(study_with(attack={"stages": ["trained"]}))
    first = evaluate(study, store=tmp_path)
    [model, _] = tmp_path.glob("*/*.safetensors")
    model.write_bytes(model.read_bytes()[:-4] + b"\0\0\0\1")
    progress = Notes()
    again = evaluate(study, store=tmp_path, resume=True, progress=progress)
    assert timeless(again) == timeless(first)
    assert len(progress.said) == 1
    assert sorted(computed(tmp_path).values())[-2:] == [1, 2]


def test_what_was_there_is_counted_as_done_from_before(tmp_path: Path) -> None:
    study, progress = Study.from_dict(STUDY), Notes()
    evaluate(replace(study, defenses=study.defenses[:1]), store=tmp_path)
    evaluate(study, store=tmp_path, resume=True, progress=progress)
    assert progress.begun == (10, 5)
    assert progress.advanced == 5
    assert progress.said == []


def test_a_report_says_in_how_many_processes_it_was_made() -> None:
    facts = evaluate(Study.from_dict(STUDY)).provenance
    assert (facts["jobs"], facts["backend"]) == (1, "loky")
    assert len(facts["sources"]) == len(facts["data"]["digest"]) == 40
    assert facts["hardware"]["cores"] >= 1


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.begun, self.advanced = (0, 0), 0
        self.said: list[str] = []

    def begin(self, total: int, done: int = 0) -> None:
        self.begun = (total, done)

    def advance(self) -> None:
        self.advanced += 1

    def note(self, what: str) -> None:
        self.said.append(what)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A worker stopped:UserWarning")
def test_a_worker_that_is_killed_loses_its_rows_and_no_others(tmp_path: Path) -> None:
    study = Study.from_dict(STUDY)
    evaluate(study, store=tmp_path)
    dies = Defense("dies", transform=Dies(os.getpid()))
    report = evaluate(
        replace(study, defenses=(*study.defenses, dies)), store=tmp_path, resume=True, jobs=2
    )
    assert [row.defense for row in report.rows] == ["none", "top-k"]
    [failure] = report.failures
    assert failure.defense == "dies"
    assert "try again with fewer processes (--jobs)" in failure.why


def test_an_unknown_backend_and_a_ray_client_are_refused(tmp_path: Path) -> None:
    study = Study.from_dict(STUDY)
    with pytest.raises(UnusableInputError, match="unknown backend: 'rya'; did you mean 'ray'"):
        evaluate(study, backend="rya")  # type: ignore[arg-type]
    client = "ray://127.0.0.1:10001"
    with pytest.raises(UnusableInputError, match="give the cluster's own host:port"):
        evaluate(study, store=tmp_path, backend="ray", ray_address=client, jobs=2)
    with pytest.raises(UnusableInputError, match="needs a store: a folder"):
        evaluate(study, backend="ray", ray_address="127.0.0.1:6379", jobs=2)
    with pytest.raises(UnusableInputError, match="goes with the backend 'ray'"):
        evaluate(study, ray_address="127.0.0.1:6379")
