"""Where the best possible attacker is known, the adaptive attacks reach 97 % of its success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from gradguard.attacks import ADAPTIVE, BASELINES
from gradguard.attacks.composition import draw_counts
from gradguard.evaluation.metrics import success
from tests.attacks.models import gradient
from tests.controls.bench import Scores, Victims, draw_victims, play
from tests.controls.oracle import TOYS, Toy

CALIBRATION, SCORED = 400, 1600

UNREACHED: dict[str, str] = {}
"""Toys on which today's attacks fall short, with what they reach; empty it as they improve."""

every_toy = pytest.mark.parametrize("toy", TOYS, ids=repr)


@dataclass(frozen=True, eq=False)
class Gap:
    """Attacks and oracle on the same victims.

    Args:
        scores: The attacks'.
        oracle: The oracle's success on the scored batches, ``(batches,)``.
    """

    scores: Scores
    oracle: np.ndarray

    def ratio(self, name: str) -> float:
        """An attack's success as a share of the oracle's."""
        return self.scores.rate(name) / float(self.oracle.mean())


def victims_of(toy: Toy, number: int) -> Victims:
    """Batches of examples that the attacker has not seen."""
    examples = toy.examples(400, seed=4)
    return draw_victims(toy.client(seed=3), toy.knowledge(), examples, number, seed=0)


def measure(toy: Toy) -> Gap:
    """Every adaptive attack beside the oracle."""
    victims = victims_of(toy, CALIBRATION + SCORED)
    guessed, _ = toy.oracle([seen.update for seen in victims.seen])
    scores = play([*BASELINES, *ADAPTIVE], toy.knowledge(), victims, CALIBRATION)
    return Gap(scores, success(guessed, victims.counts)[CALIBRATION:])


def _parameters() -> list[Any]:
    return [
        pytest.param(
            toy,
            id=toy.name,
            marks=[pytest.mark.xfail(strict=True, reason=UNREACHED[toy.name])]
            if toy.name in UNREACHED
            else [],
        )
        for toy in TOYS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("toy", _parameters())
def test_the_worst_case_reaches_97_percent_of_the_best_possible(toy: Toy) -> None:
    gap = measure(toy)
    for name, found in gap.scores.scored.items():
        ahead = found - gap.oracle
        assert ahead.mean() <= 3 * ahead.std() / len(ahead) ** 0.5, f"{name} beats the oracle"
    assert gap.ratio(gap.scores.worst) >= 0.97


@every_toy
def test_the_oracle_gets_what_it_expects(toy: Toy) -> None:
    """Which it would not with a wrong prior, variance or decision."""
    victims = victims_of(toy, 600)
    guessed, expected = toy.oracle([seen.update for seen in victims.seen])
    surprise = success(guessed, victims.counts) - expected
    assert abs(surprise.mean()) <= 3 * surprise.std() / len(surprise) ** 0.5


@every_toy
def test_the_prior_is_that_of_the_generator(toy: Toy) -> None:
    counts, weights = toy.prior()
    assert weights.sum() == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    drawn = [draw_counts(toy.composition, toy.classes, toy.batch_size, rng) for _ in range(4000)]
    known = {tuple(row.tolist()): weight for row, weight in zip(counts, weights, strict=True)}
    found = dict.fromkeys(known, 0)
    for row in drawn:
        found[tuple(row.tolist())] += 1  # a KeyError if the prior lacks it
    for key, weight in known.items():
        assert abs(found[key] / len(drawn) - weight) <= 4.5 * (weight / len(drawn)) ** 0.5


@every_toy
def test_the_message_is_the_gradient_of_the_model_and_noise(toy: Toy) -> None:
    inputs, labels = toy.examples(3, seed=0)
    exact = gradient(toy.model(), inputs, labels)
    sent = toy.client(seed=0)(inputs, labels)
    assert list(sent) == list(exact)
    flat = torch.cat([exact[name].flatten() for name in exact])
    torch.testing.assert_close(flat, inputs.mean(dim=0))
    added = torch.cat([(sent[name] - exact[name]).flatten() for name in exact])
    assert float(added.std()) == pytest.approx(toy.noise, rel=0.2)
