"""Laws that every exported attack obeys; one that is exported later cannot escape them."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gradguard.attacks
from gradguard.attacks import (
    ADAPTIVE,
    BASELINES,
    LLG,
    PUBLISHED,
    Attack,
    FittedAttack,
    Knowledge,
    NegativeColumns,
    Observation,
    RandomGuess,
)
from tests.attacks.models import CLASSES, batches, cnn, gradient, knowledge, overlap, skewed


def quick(attack: Attack) -> Attack:
    """The attack with as few simulated batches as it allows."""
    if not hasattr(attack, "simulated"):
        return attack
    small: Attack = dataclasses.replace(attack, simulated=40)  # type: ignore[type-var]
    return small


ATTACKS = [quick(attack) for attack in (*BASELINES, *PUBLISHED, *ADAPTIVE)]
MODEL = cnn()
COUNTS = skewed(6)

every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


def messages() -> list[Observation]:
    return [seen for _, _, seen in batches(MODEL, COUNTS)]


@pytest.fixture(scope="module")
def fitted_attacks() -> dict[Attack, FittedAttack]:
    known = knowledge(MODEL)
    return {attack: attack.fit(known) for attack in ATTACKS}


@every_attack
def test_answers_are_counts_that_sum_to_the_batch(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    counts = fitted_attacks[attack].infer(messages())
    assert counts.dtype == torch.int64
    assert counts.shape == COUNTS.shape
    assert (counts >= 0).all()
    assert (counts.sum(dim=1) == 8).all()


@every_attack
def test_the_same_seed_gives_the_same_answers(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    again = attack.fit(knowledge(cnn()))
    assert torch.equal(fitted_attacks[attack].infer(messages()), again.infer(messages()))


@every_attack
def test_observations_are_not_modified(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    seen = messages()
    before = [{n: t.clone() for n, t in o.update.items()} for o in seen]
    counts = fitted_attacks[attack].infer(seen)
    counts += 1  # nor does the answer share memory with what was fitted
    for o, kept in zip(seen, before, strict=True):
        assert all(torch.equal(o.update[name], kept[name]) for name in kept)
    assert (fitted_attacks[attack].infer(seen).sum(dim=1) == 8).all()


@every_attack
def test_each_message_is_answered_by_itself(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    if isinstance(attack, RandomGuess):
        pytest.skip("draws anew for each message of a list")
    seen = messages()
    singly = torch.cat([fitted_attacks[attack].infer([o]) for o in seen])
    assert torch.equal(fitted_attacks[attack].infer(seen), singly)


@every_attack
def test_zero_messages_are_answered(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    zero = {name: torch.zeros_like(t) for name, t in messages()[0].update.items()}
    counts = fitted_attacks[attack].infer([Observation(zero, 8, CLASSES)])
    assert counts.sum() == 8
    assert (counts >= 0).all()


@every_attack
def test_half_precision_messages_are_answered(
    attack: Attack, fitted_attacks: dict[Attack, FittedAttack]
) -> None:
    seen = [Observation({n: t.half() for n, t in o.update.items()}, 8, CLASSES) for o in messages()]
    assert (fitted_attacks[attack].infer(seen).sum(dim=1) == 8).all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("attack", [quick(attack) for attack in ADAPTIVE], ids=repr)
def test_multiplying_all_messages_by_a_constant_hides_nothing(attack: Attack, size: float) -> None:
    """Squares of such messages are zero or infinite in single precision."""

    def scaled(update: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.double() * size for name, t in update.items()}

    known = knowledge(MODEL, client=lambda inputs, labels: scaled(gradient(MODEL, inputs, labels)))
    seen = [dataclasses.replace(o, update=scaled(o.update)) for o in messages()]
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
    seen = messages()
    turned = [dataclasses.replace(o, update=dict(reversed(o.update.items()))) for o in seen]
    assert torch.equal(fitted_attacks[attack].infer(seen), fitted_attacks[attack].infer(turned))


@every_attack
def test_what_it_needs_is_enough_and_is_asked_for(attack: Attack) -> None:
    known = knowledge(MODEL)
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
    model = cnn().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(11)
    expected = torch.random.get_rng_state()
    attack.fit(knowledge(model)).infer(messages())
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@every_attack
def test_no_answer_where_the_head_is_not_found(attack: Attack) -> None:
    if "head" not in {f.name for f in dataclasses.fields(attack)}:  # type: ignore[arg-type]
        pytest.skip("does not read the head")
    named = dataclasses.replace(attack, head="missing")  # type: ignore[type-var]
    with pytest.raises(ValueError, match="matrix with 4 rows in layer 'missing'"):
        named.fit(knowledge(MODEL)).infer(messages())


@pytest.mark.parametrize("attack", PUBLISHED, ids=repr)
def test_local_steps_without_drift_are_read_as_the_gradient_they_repeat(attack: Attack) -> None:
    fitted, seen = attack.fit(knowledge(MODEL)), messages()
    # Powers of two, so that multiplying and dividing again loses no digit.
    several = [
        dataclasses.replace(
            o,
            update={n: t * (4 * 0.125) for n, t in o.update.items()},
            local_steps=4,
            learning_rate=0.125,
        )
        for o in seen
    ]
    assert torch.equal(fitted.infer(seen), fitted.infer(several))


@pytest.mark.parametrize("attack", PUBLISHED, ids=repr)
def test_steps_and_rates_that_are_not_positive_are_refused(attack: Attack) -> None:
    fitted = attack.fit(knowledge(MODEL))
    for wrong in ({"local_steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}):
        with pytest.raises(ValueError, match="local_steps must be at least 1"):
            fitted.infer([dataclasses.replace(messages()[0], **wrong)])


@pytest.mark.parametrize("attack", [LLG(), NegativeColumns()], ids=repr)
def test_permuting_the_classes_permutes_the_answer(attack: Attack) -> None:
    order = torch.tensor([2, 0, 3, 1])
    fitted = attack.fit(Knowledge())

    def permuted(update: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t[order] if n.startswith("5.") else t for n, t in update.items()}

    seen = messages()
    moved = [dataclasses.replace(o, update=permuted(o.update)) for o in seen]
    np.testing.assert_array_equal(fitted.infer(seen)[:, order], fitted.infer(moved))


def test_exported_attacks_have_distinct_reprs() -> None:
    names = [repr(attack) for attack in ATTACKS]
    assert len(set(names)) == len(names)
