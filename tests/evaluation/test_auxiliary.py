"""The data part of the knowledge dial: few auxiliary images, or of another distribution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gradguard.attacks import Attack, Knowledge, NotApplicableError
from gradguard.evaluation import Data, Study, UnusableInputError, evaluate, load_digits
from gradguard.evaluation.attackers import select_attacks, shaped
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.evaluation.shift import SHIFTS
from gradguard.evaluation.specs import AttackSpec
from gradguard.evaluation.split import keep_per_class
from tests.attacks.models import CLASSES, SIDE, batches, cnn, data, knowledge, skewed
from tests.evaluation.examples import study_with

BANK = shaped(select_attacks(AttackSpec(simulated=40)), (1, SIDE, SIDE))
MODEL = cnn()


def bench(**attack: object) -> Bench:
    return prepare(Study.from_dict(study_with(attack=attack)))


def counts(of: Bench) -> list[int]:
    return [int(number) for number in np.bincount(of.auxiliary()[1].numpy(), minlength=10)]


def test_the_attacker_has_so_many_images_of_each_class() -> None:
    assert counts(bench(auxiliary_per_class=3)) == [3] * 10
    assert min(counts(bench())) > 30


def test_more_images_hold_those_of_fewer() -> None:
    every = bench()
    kept = [set(bench(auxiliary_per_class=n).parts.auxiliary) for n in (1, 5, 20)]
    assert kept[0] < kept[1] < kept[2] < set(every.parts.auxiliary)
    assert np.array_equal(bench(auxiliary_per_class=5).parts.scored, every.parts.scored)


def test_a_smaller_class_is_kept_whole() -> None:
    labels = np.array([0, 1, 0, 0, 1, 0, 2])
    assert keep_per_class(np.array([6, 5, 4, 3, 2, 1]), labels, 2).tolist() == [6, 5, 4, 3, 1]


def test_more_than_there_is_of_any_class_is_refused() -> None:
    with pytest.raises(UnusableInputError, match=r"auxiliary_per_class is 1000, but .* at most"):
        bench(auxiliary_per_class=1000)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"auxiliary_per_class": 0}, "auxiliary_per_class must be a whole number of at least 1"),
        ({"auxiliary_per_class": 2.5}, "auxiliary_per_class must be a whole number"),
        ({"auxiliary_shift": "rotation"}, "unknown attack.auxiliary_shift.*did you mean 'rotate'"),
        ({"auxiliary_shift": 3}, "unknown attack.auxiliary_shift"),
    ],
)
def test_an_unusable_setting_is_named(attack: dict[str, object], said: str) -> None:
    with pytest.raises(UnusableInputError, match=said):
        Study.from_dict(study_with(attack=attack))


@pytest.mark.parametrize("shift", SHIFTS)
def test_only_the_attackers_images_are_shifted(shift: str) -> None:
    shifted = bench(auxiliary_shift=shift)
    images = load_digits().images
    found, labels = shifted.auxiliary()
    original = images[torch.from_numpy(shifted.parts.auxiliary)]
    assert torch.equal(found, original) == (shift == "none")
    assert torch.equal(labels, load_digits().labels[torch.from_numpy(shifted.parts.auxiliary)])
    assert torch.equal(shifted.part(shifted.parts.scored)[0], bench().part(bench().parts.scored)[0])


def test_a_shift_of_what_is_no_image_is_refused_before_any_work() -> None:
    flat = Data("flat", load_digits().images.flatten(1), load_digits().labels, 10)
    study = Study.from_dict(study_with(attack={"auxiliary_shift": "blur"}))
    with pytest.raises(UnusableInputError, match=r"attack\.auxiliary_shift: .* for images"):
        prepare(study, data=flat)


def test_a_study_survives_a_round_trip_with_them() -> None:
    settings = {"auxiliary_per_class": 20, "auxiliary_shift": "blur"}
    study = Study.from_dict(study_with(attack=settings))
    assert Study.from_dict(study.to_dict()) == study


def refusal(attack: Attack, known: Knowledge) -> str:
    """Fit and infer; the reason where the attack says that it cannot be mounted, or nothing."""
    seen = [message for _, _, message in batches(MODEL, skewed(6))]
    try:
        answered = attack.fit(known).infer(seen)
    except NotApplicableError as error:
        return f"not applicable: {error}"
    assert answered.shape == (6, CLASSES)
    assert (answered.sum(dim=1) == 8).all()
    assert (answered >= 0).all()
    return ""


LABELS = data(80, seed=7)[1].numpy()
SCARCE = {
    "one image": np.array([5]),
    "one image of each class": np.arange(CLASSES),
    "one image of one class": np.append(np.flatnonzero(LABELS != 0), 0),
    "no image of one class": np.flatnonzero(LABELS != 0),
    "one class": np.flatnonzero(LABELS == 2),
    "two images of each class": np.arange(2 * CLASSES),
}


@pytest.mark.parametrize("rows", SCARCE.values(), ids=SCARCE)
@pytest.mark.parametrize("attack", BANK.values(), ids=BANK)
def test_with_scarce_data_an_attack_answers_or_says_why_it_cannot(
    attack: Attack, rows: np.ndarray
) -> None:
    inputs, labels = (part[torch.from_numpy(rows)] for part in data(80, seed=7))
    refusal(attack, replace(knowledge(MODEL), auxiliary=(inputs, labels)))


@pytest.mark.parametrize("attack", BANK.values(), ids=BANK)
def test_two_images_of_each_class_are_enough_where_twenty_are(
    attack: Attack,
) -> None:
    inputs, labels = data(2 * CLASSES, seed=7)
    plenty = knowledge(MODEL)
    assert refusal(attack, replace(plenty, auxiliary=(inputs, labels))) == refusal(attack, plenty)


@pytest.mark.slow
def test_a_report_says_which_attacks_had_too_little_data() -> None:
    settings = {"auxiliary_per_class": 1, "attackers": "all", "simulated": 40}
    for row in evaluate(Study.from_dict(study_with(attack=settings))).rows:
        assert "two examples of some class" in row.skipped["LearnedRegression"]
        assert "LearnedRegression" not in row.attacks
        assert row.advantage > 0.3
