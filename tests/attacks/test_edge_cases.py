"""What published attacks do where there is little to go by: tiny problems, odd models and data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gradguard.attacks import GDBR, RLU, ZLG, Attack, FittedAttack, Observation, SoftLabels
from tests.attacks.local_training import local_change
from tests.attacks.models import CLASSES, batches, cnn, data, gradient, knowledge, overlap, skewed

ATTACKS: tuple[Attack, ...] = (ZLG("noise"), ZLG("auxiliary"), RLU(), GDBR(), SoftLabels())

each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


def odd_model() -> nn.Module:
    """With layers that behave differently in training, where clients compute gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1)),
            nn.Linear(16, CLASSES),
        )


def counts_of(fitted: FittedAttack, seen: Observation) -> np.ndarray:
    counts: np.ndarray = fitted.infer([seen])[0].numpy()
    assert counts.sum() == seen.batch_size
    assert (counts >= 0).all()
    return counts


@each_attack
def test_single_examples_are_read(attack: Attack) -> None:
    counts = np.eye(CLASSES, dtype=np.int64)
    fitted = attack.fit(knowledge(cnn(), 1))
    assert overlap(fitted.infer([o for _, _, o in batches(cnn(), counts)]), counts) == 1.0


@each_attack
def test_two_classes_are_read(attack: Attack) -> None:
    model = cnn(classes=2)
    counts = np.array([[6, 2], [0, 8], [5, 3]])
    known = knowledge(model, num_classes=2, auxiliary=data(40, 7, classes=2))
    fitted = attack.fit(known)
    assert overlap(fitted.infer([o for _, _, o in batches(model, counts)]), counts) > 0.85


@each_attack
def test_nan_in_any_layer_that_is_read_is_refused(attack: Attack) -> None:
    [(_, _, seen)] = batches(cnn(), skewed(1))
    nan = replace(seen, update={n: t * torch.nan for n, t in seen.update.items()})
    with pytest.raises(ValueError, match="finite"):
        attack.fit(knowledge(cnn())).infer([nan])


@each_attack
def test_class_without_auxiliary_example_is_survived(attack: Attack) -> None:
    inputs, labels = data(80, 7)
    known = knowledge(cnn(), auxiliary=(inputs[labels != 2], labels[labels != 2]))
    counts = skewed(20)
    found = attack.fit(known).infer([o for _, _, o in batches(cnn(), counts)])
    assert overlap(found, counts) > 0.8


@each_attack
def test_auxiliary_data_sorted_by_class_is_as_good(attack: Attack) -> None:
    inputs, labels = data(800, 7)
    order = labels.argsort()
    known = knowledge(cnn(), auxiliary=(inputs[order], labels[order]))
    pair = batches(cnn(), np.array([[0, 2, 3, 3]]))[0][:2]
    seen = local_change(cnn(), [pair] * 4, 0.05)
    fitted = attack.fit(known)
    mixed = attack.fit(knowledge(cnn(), auxiliary=(inputs, labels)))
    assert np.abs(counts_of(fitted, seen) - counts_of(mixed, seen)).sum() <= 2


@each_attack
def test_models_with_batch_norm_and_dropout_are_read(attack: Attack) -> None:
    """Their signs and feature sums scatter, so that not all labels are read; blind has .4."""
    model, counts = odd_model().train(), skewed(20)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        seen = [o for _, _, o in batches(model, counts)]
    assert overlap(attack.fit(knowledge(model.eval())).infer(seen), counts) > 0.6


@each_attack
def test_several_steps_of_such_models_are_answered(attack: Attack) -> None:
    model = odd_model()
    pair = batches(model, skewed(1))[0][:2]
    fitted = attack.fit(knowledge(model))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    seen = local_change(model, [pair] * 3, 0.05)
    assert (counts_of(fitted, seen) == counts_of(fitted, seen)).all()
    for name, tensor in model.state_dict().items():
        if "running" not in name and "num_batches" not in name:  # these the client itself moved
            assert torch.equal(tensor, before[name])


@each_attack
@pytest.mark.parametrize("steps", [1, 5])
def test_messages_of_zeros_are_answered_after_any_number_of_steps(
    attack: Attack, steps: int
) -> None:
    zeros = {n: torch.zeros_like(p) for n, p in cnn().named_parameters()}
    counts_of(attack.fit(knowledge(cnn())), Observation(zeros, 8, CLASSES, steps, 0.1))


@each_attack
def test_half_precision_changes_hardly_anything(attack: Attack) -> None:
    counts = skewed(10)
    seen = [o for _, _, o in batches(cnn(), counts)]
    half = [replace(o, update={n: t.half() for n, t in o.update.items()}) for o in seen]
    fitted = attack.fit(knowledge(cnn()))
    assert abs(overlap(fitted.infer(half), counts) - overlap(fitted.infer(seen), counts)) < 0.05


@each_attack
def test_fresh_double_precision_models_are_read(attack: Attack) -> None:
    model = cnn().double()
    inputs, labels = data(80, 7)
    fitted = attack.fit(knowledge(model, auxiliary=(inputs.double(), labels)))
    [(x, y, _)] = batches(model, np.array([[4, 2, 1, 1]]))
    seen = Observation(gradient(model, x, y), 8, CLASSES)
    assert np.minimum(counts_of(fitted, seen), [4, 2, 1, 1]).sum() >= 6
