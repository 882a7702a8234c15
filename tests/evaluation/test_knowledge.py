from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from gradguard.attacks import BASELINES, Attack, Knowledge
from gradguard.evaluation import AttackScore, Report, Study, evaluate
from gradguard.evaluation.attackers import attack_name, select_attacks, shaped
from gradguard.evaluation.knowledge import LEVELS, TOLD, attacks_by_level
from gradguard.evaluation.report import KnowledgeScore
from gradguard.evaluation.running.rows import worst_attack, worst_by_knowledge
from gradguard.evaluation.specs import AttackSpec
from tests.attacks.models import SIDE, batches, cnn, knowledge, skewed
from tests.evaluation.examples import report, row, study_with

BANK = shaped(select_attacks(AttackSpec()), (1, SIDE, SIDE))
NEEDS = {name: attack.needs for name, attack in BANK.items()}
BLIND = [attack_name(attack) for attack in BASELINES]
FIXED = {
    name: attack
    for name, attack in BANK.items()
    if name not in BLIND and "client" not in attack.needs
}
SMALL = study_with(
    attack={"attackers": ["LLG", "LLGStar(zeros)", "LLGPlus", "LearnedRegression"]}
    | {"simulated": 40}
)


def scored(**means: float) -> dict[str, AttackScore]:
    return {name: AttackScore(mean, (mean / 2, 1.0), mean) for name, mean in means.items()}


def calibrated(**means: float) -> dict[str, np.ndarray]:
    return {name: np.full((2, 3), mean) for name, mean in means.items()}


def test_every_level_runs_what_the_one_before_runs_and_the_last_runs_all() -> None:
    levels = list(attacks_by_level(NEEDS).values())
    for less, more in itertools.pairwise(levels):
        assert set(less) < set(more)
    assert levels[-1] == list(NEEDS)


def test_levels_have_the_attacks_that_need_no_more() -> None:
    found = attacks_by_level(NEEDS)
    assert {"RandomGuess", "BestConstant", "LLG", "NegativeColumns"} <= set(found["gradient"])
    assert "LLGStar(zeros)" in set(found["+ model"]) - set(found["gradient"])
    assert {"LLGPlus", "BiasCount"} <= set(found["+ auxiliary data"]) - set(found["+ model"])
    assert "LearnedRegression" not in found["+ auxiliary data"]


def test_an_attack_that_needs_something_unheard_of_is_for_the_highest_level_only() -> None:
    found = attacks_by_level({"BestConstant": {"num_classes"}, "New": {"keys"}})
    assert [names for names in found.values() if "New" in names] == [found["+ defence"]]
    assert all("BestConstant" in names for names in found.values())


def test_a_levels_attack_is_chosen_on_calibration_batches_and_scored_on_others() -> None:
    chosen = calibrated(BestConstant=0.3, LLG=0.5, LLGPlus=0.6, LearnedRegression=0.4)
    scores = scored(BestConstant=0.3, LLG=0.7, LLGPlus=0.2, LearnedRegression=0.9)
    found = worst_by_knowledge(chosen, scores, NEEDS)
    assert list(found) == list(LEVELS)
    assert found["gradient"] == found["+ model"] == KnowledgeScore("LLG", 0.7, (0.35, 1.0), 0.7)
    assert found["+ auxiliary data"].attack == found["+ defence"].attack == "LLGPlus"
    assert found["+ defence"].asr == 0.2


def test_who_has_no_attack_above_a_guess_guesses() -> None:
    chosen = calibrated(BestConstant=0.5, LLG=0.4, LearnedRegression=0.9)
    found = worst_by_knowledge(
        chosen, scored(BestConstant=0.5, LLG=0.6, LearnedRegression=1), NEEDS
    )
    assert [score.attack for score in found.values()] == ["BestConstant"] * 3 + [
        "LearnedRegression"
    ]


def test_attacks_that_could_not_be_mounted_take_no_part() -> None:
    found = worst_by_knowledge(calibrated(BestConstant=0.5), scored(BestConstant=0.5), NEEDS)
    assert {score.attack for score in found.values()} == {"BestConstant"}


@pytest.fixture(scope="module")
def small() -> Report:
    return evaluate(Study.from_dict(SMALL))


def test_the_highest_level_is_the_worst_attack_in_every_row(small: Report) -> None:
    for found in small.rows:
        top = found.knowledge["+ defence"]
        assert (top.attack, top.asr, top.ci) == (
            found.worst_attack,
            found.worst_asr,
            found.worst_ci,
        )
        assert top.advantage == found.advantage


def test_scores_of_levels_are_those_of_their_attacks(small: Report) -> None:
    for found in small.rows:
        for score in found.knowledge.values():
            attack = found.attacks[score.attack]
            assert (attack.asr, attack.ci, attack.advantage) == (
                *(score.asr, score.ci, score.advantage),
            )


def test_the_worst_attack_is_unchanged_by_levels() -> None:
    chosen = calibrated(BestConstant=0.3, LLG=0.6, LLGPlus=0.6)
    found = worst_by_knowledge(chosen, scored(BestConstant=0.3, LLG=0.6, LLGPlus=0.6), NEEDS)
    assert found["+ defence"].attack == worst_attack(chosen) == "LLG"


def test_levels_survive_a_round_trip_and_their_absence_too() -> None:
    score = KnowledgeScore("LLG", 0.7, (0.6, 0.8), 0.5)
    original = report(row(knowledge=dict.fromkeys(LEVELS, score)), row())
    assert Report.from_json(original.to_json()) == original
    assert original.to_json().count('"knowledge": {}') == 1


@pytest.mark.parametrize("attack", FIXED.values(), ids=FIXED)
def test_an_attack_uses_nothing_that_it_does_not_name(attack: Attack) -> None:
    """Otherwise its level would be too low, and the level would claim more than it can read."""
    model = cnn()
    everything = knowledge(model, 3)  # fewer than classes, which is all that RLG can read
    kept = attack.needs | TOLD
    without = {
        spec.name: None
        for spec in fields(Knowledge)
        if spec.name in ("model", "auxiliary", "client") and spec.name not in kept
    }
    seen = [message for _, _, message in batches(model, skewed(6, 3))]
    less = attack.fit(replace(everything, **without))  # type: ignore[arg-type]
    assert torch.equal(less.infer(seen), attack.fit(everything).infer(seen))
