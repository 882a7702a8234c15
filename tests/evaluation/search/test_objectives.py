from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradguard import Defense, KeepTopK, Quantize, Sign
from gradguard.evaluation import Report
from gradguard.evaluation.decisions.gate import judge
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.report import Failure, Row
from gradguard.evaluation.search.objectives import WORST_BYTES, Candidate, candidates, pareto
from tests.evaluation.decisions.reports import judgeable, quiet, scored
from tests.evaluation.examples import row

STUDY = {
    "training": {"seeds": 2},
    "attack": {"stages": ["init", "trained"], "compositions": ["skewed"], "batch_sizes": [8]},
    "defense": [{"name": "top-k 1 %"}],
}
MINE = Defense("top-k 1 %", transform=KeepTopK(0.01))
INIT = row()
TRAINED = quiet(
    stage="trained",
    advantage=0.1,
    advantage_ci=(0.0, 0.8),
    bytes_per_update=40.0,
    step_overhead=1.4,
)


def of(*rows: Row, failures: tuple[Failure, ...] = ()) -> Report:
    return judgeable(*rows, study=STUDY, failures=failures)


def test_a_candidate_is_as_good_as_its_worst_row() -> None:
    assert candidates(of(INIT, TRAINED), [MINE]) == [
        Candidate(
            name="top-k 1 %",
            advantage=0.5,
            advantage_most=0.8,
            accuracy=0.9,
            accuracy_least=0.88,
            bytes_per_update=40.0,
            step_overhead=1.4,
        )
    ]


def test_the_bad_end_is_that_of_a_gate() -> None:
    other = scored(0.95, (0.9, 0.99))
    seen = replace(TRAINED, attacks=TRAINED.attacks | {"RLG": other})
    found = of(INIT, seen)
    [candidate] = candidates(found, [MINE])
    at = candidate.advantage_most
    assert at > 0.91
    assert judge(found, defense="top-k 1 %", max_advantage=at).holds
    assert not judge(found, defense="top-k 1 %", max_advantage=at - 1e-9).holds
    assert judge(found, defense="top-k 1 %", max_advantage=1, min_accuracy=0.88).holds
    assert not judge(found, defense="top-k 1 %", max_advantage=1, min_accuracy=0.881).holds


def failed(*rows: Row, failures: tuple[Failure, ...] = ()) -> Candidate:
    found = of(*rows, failures=failures)
    with pytest.raises(UnusableInputError):
        judge(found, defense="top-k 1 %", max_advantage=1)
    [candidate] = candidates(found, [MINE])
    return candidate


def test_a_defence_that_a_gate_would_refuse_to_judge_has_failed() -> None:
    gone = Failure(
        defense="top-k 1 %", composition="skewed", stage="trained", batch_size=8, why="no memory"
    )
    assert "no memory" in str(failed(INIT, failures=(gone,)).failed)
    assert "lacks 1 of the rows" in str(failed(INIT).failed)
    assert "diverged" in str(failed(INIT, replace(TRAINED, diverged=True)).failed)
    assert "row" in str(failed().failed)


def test_a_failed_candidate_has_the_worst_numbers_and_none_of_them_is_nan() -> None:
    worst = failed(INIT)
    assert worst.objectives == (1.0, 0.0, 40.0)
    assert worst.bytes_per_update == WORST_BYTES
    assert all(math.isfinite(value) for value in worst.objectives)


def test_without_a_message_a_candidate_failed() -> None:
    [candidate] = candidates(of(INIT, replace(TRAINED, bytes_per_update=None)), [MINE])
    assert "no message" in str(candidate.failed)


def test_one_training_run_has_no_interval() -> None:
    single = [replace(r, accuracy_ci=None, accuracy_seeds=(0.9,)) for r in (INIT, TRAINED)]
    [candidate] = candidates(of(*single), [MINE])
    assert candidate.accuracy_least == candidate.accuracy == 0.9


def test_an_attack_that_was_too_weak_is_a_doubt() -> None:
    more = Defense("and more", transform=[KeepTopK(0.01), Quantize(8)])
    leaking = {"worst_asr": 0.95, "worst_ci": (0.93, 0.97), "advantage_ci": (0.9, 0.95)}
    stronger = [quiet(defense="and more", stage=s, **leaking) for s in ("init", "trained")]
    rows = [INIT, TRAINED, *stronger]
    first, second = candidates(of(*rows), [MINE, more])
    assert "understate what 'top-k 1 %' leaks" in str(first.doubt)
    assert first.failed is None
    assert second.doubt is None


def test_what_is_read_below_a_blind_guess_is_not_hidden_better() -> None:
    good = candidates(of(INIT, TRAINED), [MINE])[0]
    below = replace(good, name="below", advantage=-0.2)
    level = replace(good, name="level", advantage=0.0)
    assert below.objectives == level.objectives
    assert len(pareto([below, level])) == 2


def test_less_is_better_of_every_objective() -> None:
    good = candidates(of(INIT, TRAINED), [MINE])[0]
    for better in (
        replace(good, advantage=0.4),
        replace(good, accuracy=0.91),
        replace(good, bytes_per_update=39.0),
    ):
        assert sum(better.objectives) < sum(good.objectives)
        assert pareto([good, better]) == [better]
    assert pareto([good, replace(good, step_overhead=9.0)]) == [good]


def test_a_failed_candidate_is_on_no_front() -> None:
    assert pareto([Candidate(name="F", failed="why")]) == []


def test_times_that_noise_could_explain_are_the_same() -> None:
    good = candidates(of(INIT, TRAINED), [MINE])[0]
    two = [replace(good, step_overhead=1.0), replace(good, step_overhead=1.3)]
    assert pareto(two) == two


def test_others_of_the_report_are_left_out() -> None:
    found = of(INIT, TRAINED, replace(INIT, defense="sign", advantage=1.0))
    assert candidates(found, [MINE])[0].advantage == 0.5
    assert candidates(found, [Defense("sign", transform=Sign())])[0].failed is not None
