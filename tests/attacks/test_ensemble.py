"""The stacked attack: what it promises, and that no member can take it down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradguard.attacks import Ensemble, Knowledge, LearnedRegression
from gradguard.attacks.learning.practice import practise
from tests.attacks.models import CLASSES, batches, cnn, data, gradient, knowledge, overlap, skewed

MODEL = cnn()
ATTACK = Ensemble(simulated=60)
Message = dict[str, Tensor]


class OwnHead(nn.Module):
    """An output layer that is not ``nn.Linear``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(CLASSES, 24))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight.T


def _model_with_own_head() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(*list(cnn())[:-1], OwnHead())


def _found(known: Knowledge, model: nn.Module, change: Callable[[Message], Message]) -> float:
    counts = skewed(40)
    seen = [known.observe(change(dict(o.update))) for _, _, o in batches(model, counts)]
    return overlap(ATTACK.fit(known).infer(seen), counts)


def test_a_head_of_its_own_kind_leaves_the_members_that_can_read_it() -> None:
    model = _model_with_own_head()
    assert _found(knowledge(model), model, lambda message: message) > 0.9


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {name: t for name, t in m.items() if name != "0.bias"},
        lambda m: {**m, "0.running_mean": torch.ones(6)},
        lambda m: {name: (100 * t.sign()).to(torch.int8) for name, t in m.items()},
    ],
    ids=["a tensor less", "a tensor more", "whole numbers"],
)
def test_messages_unlike_the_model_are_read_by_the_members_that_can(
    change: Callable[[Message], Message],
) -> None:
    known = knowledge(MODEL, client=lambda x, y: change(gradient(MODEL, x, y)))
    assert _found(known, MODEL, change) > 0.8


def test_it_shares_the_rehearsal_with_the_learned_attack() -> None:
    calls = 0

    def counting(inputs: Tensor, labels: Tensor) -> Message:
        nonlocal calls
        calls += 1
        return gradient(MODEL, inputs, labels)

    known = knowledge(MODEL, client=counting)
    LearnedRegression(simulated=60).fit(known)
    before = calls
    ATTACK.fit(known)
    assert calls == before


def test_the_rehearsal_is_done_again_when_the_model_has_changed() -> None:
    model = cnn()
    known = knowledge(model)
    first = practise(known, 40, None)
    assert practise(known, 40, None) is first
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert practise(known, 40, None) is not first


def test_without_a_model_it_still_reads() -> None:
    known = dataclasses.replace(knowledge(MODEL), model=None)
    counts = skewed(40)
    seen = [o for _, _, o in batches(MODEL, counts)]
    assert overlap(ATTACK.fit(known).infer(seen), counts) > 0.9


def test_silence_is_answered_with_the_blind_guess() -> None:
    rng = torch.Generator().manual_seed(0)

    def silent(inputs: Tensor, labels: Tensor) -> Message:
        return {n: torch.randn(p.shape, generator=rng) for n, p in MODEL.named_parameters()}

    known = knowledge(MODEL, auxiliary=data(600, seed=7), client=silent)
    fitted = Ensemble(simulated=100).fit(known)
    answers = fitted.infer([known.observe(silent(torch.ones(1), torch.ones(1)))] * 2)
    assert fitted.stack.weights[-1] == 1.0
    np.testing.assert_array_equal(answers[0], fitted.blind)
