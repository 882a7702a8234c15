from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gradguard import Defense, KeepTopK
from gradguard.evaluation.search.journal import Journal
from gradguard.evaluation.search.objectives import Candidate
from gradguard.evaluation.search.proposals import tpe
from gradguard.evaluation.search.settings import SearchSettings
from gradguard.evaluation.search.space import Space, description
from gradguard.evaluation.search.trials import run_trials
from tests.evaluation.search import closed_form, sampler_comparison
from tests.evaluation.search.closed_form import NONE, SPACE, found, measure, run, settings
from tests.evaluation.search.sampler_comparison import volume


def test_two_searches_of_one_seed_try_the_same(tmp_path: Path) -> None:
    first = run(tmp_path / "a", 22)
    assert first == run(tmp_path / "b", 22)
    assert first != run(tmp_path / "c", 22, seed=1)


def test_the_first_candidates_are_of_every_kind_and_the_references_come_before(
    tmp_path: Path,
) -> None:
    asked: list[list[str]] = []

    def noting(defenses: Sequence[Defense]) -> list[Candidate]:
        asked.append([defense.name for defense in defenses])
        return measure(defenses)

    names = run(tmp_path / "a", 8, how=noting)
    assert asked[0][0] == names[0] == "none"
    assert [len(batch) for batch in asked] == [5, 4]
    assert [name.count(",") + name.startswith("z") for name in names[1:4]] == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_a_search_finds_a_better_front_than_the_spread_alone(seed: int) -> None:
    learned = sampler_comparison.proposed(tpe, 40, seed)
    assert volume(learned) > volume(sampler_comparison.scattered(40, seed))


@pytest.mark.parametrize("trials", [1, 3, 4, 9, 13, 17])
def test_more_trials_go_on_where_fewer_ended(tmp_path: Path, trials: int) -> None:
    whole = run(tmp_path / "whole", 18)
    shorter = run(tmp_path / "parts", trials)
    assert shorter == whole[: len(shorter)]
    assert run(tmp_path / "parts", 18) == whole


def test_what_is_in_the_journal_is_not_measured_again(tmp_path: Path) -> None:
    names = run(tmp_path / "a", 18)

    def refusing(defenses: Sequence[Defense]) -> list[Candidate]:
        raise AssertionError([defense.name for defense in defenses])

    assert run(tmp_path / "a", 18, how=refusing) == names


def test_a_journal_that_ends_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 14)
    content = (tmp_path / "whole").read_bytes()
    for i in range(24):
        cut = len(content) * i // 24
        (tmp_path / "cut").write_bytes(content[:cut])
        assert run(tmp_path / "cut", 14) == whole, cut


@pytest.mark.slow
def test_a_search_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 16)
    command = [sys.executable, "-m", "tests.evaluation.search.closed_form"]
    root = Path(closed_form.__file__).parents[3]
    killed = 0
    for i in range(4):
        started = subprocess.Popen(
            [*command, str(tmp_path / "killed"), "16"], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert started.stdout is not None
        assert started.stdout.readline() == "started\n"
        time.sleep(0.13 * (i + 1))
        killed += started.poll() is None
        started.kill()
        started.communicate()
    assert killed >= 2
    assert run(tmp_path / "killed", 16) == whole


def test_no_candidate_is_measured_twice(tmp_path: Path) -> None:
    space = Space.from_list(
        [
            {"name": "{bits} bits", "transform": [{"Quantize": {"bits": {"low": 2, "high": 4}}}]},
            {"name": "four bits", "transform": [{"Quantize": {"bits": 4}}]},
        ]
    )
    asked: list[str] = []

    def noting(defenses: Sequence[Defense]) -> list[Candidate]:
        asked.extend(description(defense) for defense in defenses)
        return [found(defense) for defense in defenses]

    chosen = SearchSettings(trials=20, batch=4, space=space)
    with Journal(tmp_path / "a", space=space, settings={}) as journal:
        made = run_trials(chosen, [NONE], measure=noting, journal=journal, seed=0)
        assert len(journal.tried()) == 20
    assert len(asked) == len(set(asked)) == len(made) == 4


def test_a_reference_that_is_proposed_again_keeps_its_name(tmp_path: Path) -> None:
    space = Space.from_list([{"name": "again", "transform": [{"KeepTopK": {"ratio": 0.1}}]}])
    mine = Defense("mine", transform=KeepTopK(0.1))
    chosen = SearchSettings(trials=2, batch=2, space=space)
    with Journal(tmp_path / "a", space=space, settings={}) as journal:
        made = run_trials(chosen, [mine], measure=measure, journal=journal, seed=0)
    assert made == [mine]


def test_names_that_say_too_little_are_told_apart(tmp_path: Path) -> None:
    ratio = {"low": 0.1, "high": 0.2}
    space = Space.from_list(
        [{"name": "top-k {ratio:.0f}", "transform": [{"KeepTopK": {"ratio": ratio}}]}]
    )
    chosen = SearchSettings(trials=3, batch=3, space=space)
    with Journal(tmp_path / "a", space=space, settings={}) as journal:
        made = run_trials(chosen, [], measure=measure, journal=journal, seed=0)
    assert [defense.name for defense in made] == ["top-k 0", "top-k 0 (2)", "top-k 0 (3)"]


def test_a_failed_candidate_is_learned_from(tmp_path: Path) -> None:
    run(tmp_path / "a", 60)
    with Journal(tmp_path / "a", space=SPACE, settings={"seed": 0}) as journal:
        values = [trial.values for trial in journal.tried()]
    assert len(values) == 60
    assert (1.0, 0.0, 40.0) in values


def test_every_batch_is_told(tmp_path: Path) -> None:
    done: list[int] = []
    with Journal(tmp_path / "a", space=SPACE, settings={}) as journal:
        run_trials(settings(10), [], measure=measure, journal=journal, seed=0, told=done.append)
    assert done == [4, 8, 10]
