"""Clients whose messages say nothing about their labels, and what attackers claim to have read."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks import ADAPTIVE, BASELINES, PUBLISHED, Knowledge
from gradguard.attacks.simulation import Message
from gradguard.attacks.threat import Client
from gradguard.evaluation.attackers import BLIND
from tests.attacks import models
from tests.controls.bench import CALIBRATION, Scores, draw_victims, interval, play, sized

KINDS = ("noise", "sparse noise", "another batch", "one message", "zeros")
COMPOSITIONS = ("skewed", "iid", "dirichlet:0.3", None)
CELLS = 200
SCORED = 80
SIMULATED = 40
WORST = "worst case"

MODEL = models.cnn()
AUXILIARY, VICTIMS = models.data(80, seed=7), models.data(200, seed=2)


def silent(kind: str, seed: int) -> Client:
    """A client of one of :data:`KINDS`.

    ``another batch`` is the real gradient of images and labels that have nothing to do with the
    client's, which is to permute the counts among clients; ``one message`` is the same one always,
    with a little noise.
    """
    rng = torch.Generator().manual_seed(seed)
    inputs, labels = models.data(400, seed=1000 + seed)
    fixed = models.gradient(MODEL, inputs[:8], labels[torch.randperm(8, generator=rng)])

    def gauss(scale: float) -> Message:
        return {n: scale * torch.randn(t.shape, generator=rng) for n, t in fixed.items()}

    def send(own_inputs: Tensor, own_labels: Tensor) -> Message:
        if kind == "noise":
            return gauss(0.1)
        if kind == "sparse noise":
            kept = torch.rand(1, generator=rng)  # as many of them as chance has it
            return {
                n: torch.where(torch.rand(t.shape, generator=rng) < kept, t, 0.0)
                for n, t in gauss(0.1).items()
            }
        if kind == "another batch":
            rows = torch.randint(400, (len(own_labels),), generator=rng)
            return models.gradient(MODEL, inputs[rows], labels[rows])
        if kind == "one message":
            return {n: fixed[n] + t for n, t in gauss(1e-3).items()}
        return {n: torch.zeros_like(t) for n, t in fixed.items()}

    return send


@dataclass(frozen=True)
class Silence:
    """Counts over all cells, by attack and for the worst case.

    Args:
        cells: Cells in which the attack could be mounted.
        above: Those in which the interval of its advantage lies above zero: false alarms.
        below: Those in which it lies below zero: worse than blind, an understatement.
        gain: Mean success above the blind guess.
    """

    cells: dict[str, int]
    above: dict[str, int]
    below: dict[str, int]
    gain: dict[str, float]


def cell(number: int) -> Scores:
    """One of the cells: kinds and compositions in turn, a seed each."""
    kind, composition = KINDS[number % 5], COMPOSITIONS[number // 5 % 4]
    known = Knowledge(
        model=MODEL,
        auxiliary=AUXILIARY,
        client=silent(kind, 2 * number),
        num_classes=models.CLASSES,
        batch_size=8,
        composition=composition,
        seed=number,
    )
    victim = silent(kind, 2 * number + 1)
    victims = draw_victims(victim, known, VICTIMS, CALIBRATION + SCORED, number)
    return play(sized([*BASELINES, *PUBLISHED, *ADAPTIVE], SIMULATED), known, victims)


def _gains(cells: int) -> Iterator[dict[str, np.ndarray]]:
    for number in range(cells):
        scores = cell(number)
        gains = {name: scores.gain(name) for name in scores.scored if name != BLIND}
        yield gains | {WORST: scores.gain(scores.worst)}


@functools.cache
def listen(cells: int = CELLS) -> Silence:
    """Every attack on every cell.

    Success above the blind guess, not the advantage, has its interval taken: one is the other
    divided by a constant, so that they exclude zero together.
    """
    found = list(_gains(cells))
    names = sorted({name for gains in found for name in gains})
    every = {name: [gains[name] for gains in found if name in gains] for name in names}
    ends = {name: np.array([interval(gain) for gain in gains]) for name, gains in every.items()}
    return Silence(
        {name: len(gains) for name, gains in every.items()},
        {name: int((both[:, 0] > 0).sum()) for name, both in ends.items()},
        {name: int((both[:, 1] < 0).sum()) for name, both in ends.items()},
        {name: float(np.mean(gains)) for name, gains in every.items()},
    )
