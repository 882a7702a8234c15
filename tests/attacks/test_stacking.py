"""Weights of many answers: on the simplex, never below blind, single where single is better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard.attacks.learning.practice import Practice
from gradguard.attacks.learning.readings import Reader
from gradguard.attacks.learning.rehearsal import Rehearsal
from gradguard.attacks.learning.stacking import Stack, choose_stack
from gradguard.attacks.threat import Knowledge

CLASSES, BATCH = 5, 10


def _practice(answers: list[np.ndarray], truth: np.ndarray, images: int = 2000) -> Practice:
    known = Knowledge(
        auxiliary=(torch.zeros(images, 1), torch.arange(images) % CLASSES),
        client=lambda inputs, labels: {},
        num_classes=CLASSES,
        batch_size=BATCH,
        composition="skewed",
    )
    reader = Reader.fit([{"w": torch.ones(CLASSES, 2)}], CLASSES, 100, np.random.default_rng(0))
    blind = np.full(CLASSES, BATCH // CLASSES)
    return Practice(Rehearsal.of(known), reader, (), (), tuple(answers), truth, blind)


def _truth(messages: int = 400, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.multinomial(BATCH, rng.dirichlet(np.ones(CLASSES) * 0.5)) for _ in range(messages)]
    )


def _noisy(truth: np.ndarray, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(truth / BATCH + rng.normal(0, noise, truth.shape))


def _score(stack: Stack, answers: list[np.ndarray], truth: np.ndarray) -> float:
    blind = np.full(truth.shape, 1 / CLASSES)
    return float(np.minimum(stack.counts([*answers, blind]), truth).sum() / truth.sum())


def test_answers_with_independent_errors_are_better_together() -> None:
    truth, fresh = _truth(), _truth(seed=1)
    stack = choose_stack(_practice([_noisy(truth, 0.15, s) for s in range(4)], truth))
    answers = [_noisy(fresh, 0.15, 10 + s) for s in range(4)]
    alone = max(
        _score(Stack(np.eye(5)[i], stack.rounding, BATCH), answers, fresh) for i in range(4)
    )
    assert (stack.weights[:4] > 0.1).all()
    assert _score(stack, answers, fresh) > alone + 0.02


def test_answers_that_say_nothing_leave_the_blind_guess() -> None:
    truth = _truth()
    rng = np.random.default_rng(3)
    answers = [rng.dirichlet(np.ones(CLASSES), size=len(truth)) for _ in range(10)]
    stack = choose_stack(_practice(answers, truth))
    np.testing.assert_array_equal(stack.weights, np.eye(11)[-1])
    assert (
        stack.rounding is None
        or len(set(map(tuple, stack.counts([*answers, answers[0] * 0 + 1 / CLASSES])))) == 1
    )


def test_an_answer_far_outside_of_the_simplex_does_not_outvote_the_others() -> None:
    truth = _truth()
    wild = 1e6 * np.random.default_rng(0).normal(size=truth.shape)
    good = _noisy(truth, 0.05, 1)
    stack = choose_stack(_practice([wild, good], truth))
    assert _score(stack, [wild, good], truth) > 0.9


def test_the_best_single_answer_is_used_where_few_images_judge() -> None:
    truth = _truth()
    answers = [_noisy(truth, 0.15, s) for s in range(4)]
    stack = choose_stack(_practice(answers, truth, images=200))
    assert (stack.weights == stack.weights.max()).sum() == 1
    assert stack.weights.sum() == 1


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_the_stack_is_not_clearly_worse_than_its_best_member(noise: float) -> None:
    truth, fresh = _truth(), _truth(seed=1)
    rng = np.random.default_rng(0)
    levels = [noise, 0.5, 0.8]
    noises = [rng.dirichlet(np.ones(CLASSES), size=len(truth)) for _ in range(15)]
    stack = choose_stack(
        _practice([*(_noisy(truth, n, i) for i, n in enumerate(levels)), *noises], truth)
    )
    answers = [*(_noisy(fresh, n, 20 + i) for i, n in enumerate(levels)), *noises]
    alone = Stack(np.eye(len(answers) + 1)[0], None, BATCH)
    assert _score(stack, answers, fresh) >= _score(alone, answers, fresh) - 0.01
