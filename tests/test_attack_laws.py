"""Laws that every exported attack obeys; one that is exported later cannot escape them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradguard.attacks
from gradguard.attacks import (
    ADAPTIVE,
    BASELINES,
    EBI,
    IDLG,
    LLG,
    PUBLISHED,
    RLG,
    RLU,
    ZLG,
    Attack,
    FittedAttack,
    GradInversionLabels,
    Knowledge,
    NegativeColumns,
    Observation,
    RandomGuess,
)
from tests.attacks.models import batches, cnn, data, gradient, knowledge, overlap, skewed


def quick(attack: Attack) -> Attack:
    """The attack with as few simulated batches as it allows."""
    if not hasattr(attack, "simulated"):
        return attack
    small: Attack = dataclasses.replace(attack, simulated=40)  # type: ignore[type-var]
    return small


ATTACKS = [quick(attack) for attack in (*BASELINES, *PUBLISHED, *ADAPTIVE)]
MODEL = cnn()
COUNTS = skewed(6)


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, an attacker who knows everything about an undefended client, and its messages."""

    model: nn.Module
    counts: np.ndarray

    @property
    def size(self) -> int:
        return int(self.counts[0].sum())

    @property
    def classes(self) -> int:
        return int(self.counts.shape[1])

    def knowledge(self, model: nn.Module | None = None) -> Knowledge:
        return knowledge(
            model or self.model,
            self.size,
            num_classes=self.classes,
            auxiliary=data(20 * self.classes, seed=7, classes=self.classes),
        )

    def messages(self) -> list[Observation]:
        return [seen for _, _, seen in batches(self.model, self.counts)]


PROBLEM = Problem(MODEL, COUNTS)
# Fewer examples than classes, for the attack that can be mounted on nothing else.
FEW_EXAMPLES = Problem(
    cnn(classes=8), np.eye(6, 8, dtype=np.int64) + 2 * np.eye(6, 8, k=1, dtype=np.int64)
)


def problem(attack: Attack) -> Problem:
    """What the laws are tested on: batches of 8 in 4 classes, wherever that is possible."""
    return FEW_EXAMPLES if isinstance(attack, RLG) else PROBLEM


every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


def messages(attack: Attack) -> list[Observation]:
    return problem(attack).messages()


@pytest.fixture(scope="module")
def fitted_attacks() -> dict[Attack, FittedAttack]:
    return {attack: attack.fit(problem(attack).knowledge()) for attack in ATTACKS}


@every_attack
def test_answers_are_counts_that_sum_to_the_batch(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    counts = fitted_attacks[attack].infer(messages(attack))
    assert counts.dtype == torch.int64
    assert counts.shape == problem(attack).counts.shape
    assert (counts >= 0).all()
    assert (counts.sum(dim=1) == problem(attack).size).all()


@every_attack
def test_the_same_seed_gives_the_same_answers(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    again = attack.fit(problem(attack).knowledge(copy.deepcopy(problem(attack).model)))
    seen = messages(attack)
    assert torch.equal(fitted_attacks[attack].infer(seen), again.infer(seen))


@every_attack
def test_observations_are_not_modified(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    seen = messages(attack)
    before = [{n: t.clone() for n, t in o.update.items()} for o in seen]
    counts = fitted_attacks[attack].infer(seen)
    counts += 1  # nor does the answer share memory with what was fitted
    for o, kept in zip(seen, before, strict=True):
        assert all(torch.equal(o.update[name], kept[name]) for name in kept)
    assert (fitted_attacks[attack].infer(seen).sum(dim=1) == problem(attack).size).all()


@every_attack
def test_each_message_is_answered_by_itself(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    if isinstance(attack, RandomGuess):
        pytest.skip("draws anew for each message of a list")
    seen = messages(attack)
    singly = torch.cat([fitted_attacks[attack].infer([o]) for o in seen])
    assert torch.equal(fitted_attacks[attack].infer(seen), singly)


@every_attack
def test_zero_messages_are_answered(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    seen = messages(attack)[0]
    zero = {name: torch.zeros_like(t) for name, t in seen.update.items()}
    counts = fitted_attacks[attack].infer([dataclasses.replace(seen, update=zero)])
    assert counts.sum() == seen.batch_size
    assert (counts >= 0).all()


@every_attack
def test_half_precision_messages_are_answered(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    seen = [
        dataclasses.replace(o, update={n: t.half() for n, t in o.update.items()})
        for o in messages(attack)
    ]
    assert (fitted_attacks[attack].infer(seen).sum(dim=1) == problem(attack).size).all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("attack", [quick(attack) for attack in ADAPTIVE], ids=repr)
def test_multiplying_all_messages_by_a_constant_hides_nothing(attack: Attack, size: float) -> None:
    """Squares of such messages are zero or infinite in single precision."""

    def scaled(update: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.double() * size for name, t in update.items()}

    known = knowledge(MODEL, client=lambda inputs, labels: scaled(gradient(MODEL, inputs, labels)))
    seen = [dataclasses.replace(o, update=scaled(o.update)) for o in PROBLEM.messages()]
    assert overlap(attack.fit(known).infer(seen), COUNTS) > 0.9


@every_attack
def test_no_observation_is_refused(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    with pytest.raises(ValueError, match="at least one observation"):
        fitted_attacks[attack].infer([])


@every_attack
def test_the_order_of_the_tensors_changes_nothing(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    seen = messages(attack)
    turned = [dataclasses.replace(o, update=dict(reversed(o.update.items()))) for o in seen]
    assert torch.equal(fitted_attacks[attack].infer(seen), fitted_attacks[attack].infer(turned))


@every_attack
def test_what_it_needs_is_enough_and_is_asked_for(attack: Attack) -> None:
    known = problem(attack).knowledge()
    fields = [f.name for f in dataclasses.fields(Knowledge)]
    assert attack.needs <= set(fields)
    given: dict[str, Any] = {name: getattr(known, name) for name in attack.needs}
    attack.fit(Knowledge(**given))
    for name in attack.needs:
        with pytest.raises(ValueError, match=rf"{type(attack).__name__} needs .*{name}=\.\.\."):
            attack.fit(Knowledge(**{k: v for k, v in given.items() if k != name}))


@every_attack
def test_repr_evals_back(attack: Attack) -> None:
    assert eval(repr(attack), vars(gradguard.attacks)) == attack


@every_attack
def test_pickle_and_hash_keep_the_attack(attack: Attack) -> None:
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert hash(attack) == hash(pickle.loads(pickle.dumps(attack)))


@every_attack
def test_fields_cannot_be_assigned(attack: Attack) -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        attack.head = "other"  # type: ignore[attr-defined]


@every_attack
def test_model_and_random_state_are_left_as_they_were(attack: Attack) -> None:
    model = copy.deepcopy(problem(attack).model).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(11)
    expected = torch.random.get_rng_state()
    attack.fit(problem(attack).knowledge(model)).infer(messages(attack))
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@every_attack
def test_no_answer_where_the_head_is_not_found(attack: Attack) -> None:
    if "head" not in {f.name for f in dataclasses.fields(attack)}:  # type: ignore[arg-type]
        pytest.skip("does not read the head")
    named = dataclasses.replace(attack, head="missing")  # type: ignore[type-var]
    classes = problem(attack).classes
    with pytest.raises(ValueError, match=f"matrix with {classes} rows in layer 'missing'"):
        named.fit(problem(attack).knowledge()).infer(messages(attack))


@pytest.mark.parametrize("attack", PUBLISHED, ids=repr)
def test_local_steps_without_drift_are_read_as_the_gradient_they_repeat(attack: Attack) -> None:
    fitted, seen = attack.fit(problem(attack).knowledge()), messages(attack)
    # Powers of two, so that multiplying and dividing again loses no digit. A learning rate says
    # where the model ended: the attacks that follow it there see a drift.
    rate = None if isinstance(attack, (ZLG, RLU)) else 0.125
    several = [
        dataclasses.replace(
            o,
            update={n: t * (4 * (rate or 1.0)) for n, t in o.update.items()},
            local_steps=4,
            learning_rate=rate,
        )
        for o in seen
    ]
    assert torch.equal(fitted.infer(seen), fitted.infer(several))


@pytest.mark.parametrize("attack", PUBLISHED, ids=repr)
def test_steps_and_rates_that_are_not_positive_are_refused(attack: Attack) -> None:
    fitted = attack.fit(problem(attack).knowledge())
    for wrong in ({"local_steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}):
        with pytest.raises(ValueError, match="local_steps must be at least 1"):
            fitted.infer([dataclasses.replace(messages(attack)[0], **wrong)])


@pytest.mark.parametrize(
    "attack", [LLG(), NegativeColumns(), IDLG(), GradInversionLabels(), EBI()], ids=repr
)
def test_permuting_the_classes_permutes_the_answer(attack: Attack) -> None:
    order = torch.tensor([2, 0, 3, 1])
    fitted = attack.fit(Knowledge())

    def permuted(update: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t[order] if n.startswith("5.") else t for n, t in update.items()}

    seen = PROBLEM.messages()
    moved = [dataclasses.replace(o, update=permuted(o.update)) for o in seen]
    np.testing.assert_array_equal(fitted.infer(seen)[:, order], fitted.infer(moved))


def test_exported_attacks_have_distinct_reprs() -> None:
    names = [repr(attack) for attack in ATTACKS]
    assert len(set(names)) == len(names)
