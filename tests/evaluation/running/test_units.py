"""A study as units: every one of them once, in tasks that share what they can."""

from __future__ import annotations

from collections import Counter

import pytest

from gradguard.evaluation import Study
from gradguard.evaluation.running.units import Attacked, Trained, Undefended, Weighed, tasks_of
from tests.evaluation.examples import STUDY, study_with


def large() -> Study:
    attack = {"stages": ["init", "trained"], "batch_sizes": [4, 8], "rounds": [1, 5]}
    return Study.from_dict(study_with(attack=attack))


@pytest.mark.parametrize("jobs", [1, 2, 3, 8, 1000])
def test_every_unit_is_in_one_task_whatever_the_number_of_processes(jobs: int) -> None:
    units = Counter(unit for task in tasks_of(large(), jobs=jobs) for unit in task)
    assert set(units.values()) == {1}
    kinds = Counter(type(unit) for unit in units)
    # 2 defences, 2 seeds, 2 stages, 2 batch sizes, 2 numbers of rounds.
    assert kinds == {Attacked: 32, Trained: 4, Weighed: 2, Undefended: 2}


def test_a_task_shares_one_model_and_its_batches() -> None:
    for task in tasks_of(large(), jobs=1):
        shared = {(u.cell.batches, u.repeat) for u in task if isinstance(u, Attacked)}
        assert len(shared) <= 1
    assert sum(isinstance(task[0], Attacked) for task in tasks_of(large(), jobs=1)) == 8


def test_models_are_trained_before_they_are_attacked() -> None:
    order = [unit for task in tasks_of(large(), jobs=2) for unit in task]
    first = min(
        i for i, u in enumerate(order) if isinstance(u, Attacked) and u.cell.stage != "init"
    )
    assert all(order.index(Undefended(repeat)) < first for repeat in range(2))
    assert not any(
        isinstance(u, Undefended) for t in tasks_of(Study.from_dict(STUDY), jobs=1) for u in t
    )


def test_few_groups_are_divided_for_many_processes() -> None:
    study = Study.from_dict(STUDY)
    alone, several = (len(tasks_of(study, jobs=jobs)) for jobs in (1, 8))
    assert alone < several
