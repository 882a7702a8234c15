"""Attackers against a black-box client, as the report has it: choose on some, score on others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks import Attack, Knowledge, NotApplicableError, Observation
from gradguard.attacks.simulation import Pool, rehearse
from gradguard.attacks.threat import Client
from gradguard.evaluation.attackers import BLIND, attack_name
from gradguard.evaluation.metrics import Interval, advantage, success, t_interval
from gradguard.evaluation.running.rows import worst_attack

CALIBRATION = 60


@dataclass(frozen=True, eq=False)
class Victims:
    """Messages of honest clients, and what the attacker must not learn from them.

    Args:
        seen: One message per batch.
        counts: Label counts, int64 ``(batches, classes)``.
    """

    seen: list[Observation]
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Scores:
    """Success of every attack on calibration and on scored batches, ``(batches,)`` each."""

    calibration: dict[str, np.ndarray]
    scored: dict[str, np.ndarray]

    @property
    def worst(self) -> str:
        """The attack that the calibration batches name the worst case."""
        return worst_attack(self.calibration)

    def rate(self, name: str) -> float:
        """Mean success on the scored batches."""
        return float(self.scored[name].mean())

    def advantage(self, name: str) -> float:
        """What an attack gains on the best blind guess, as a share of what there is to gain."""
        return advantage(self.rate(name), self.rate(BLIND))

    def gain(self, name: str) -> np.ndarray:
        """Success above the blind guess, batch by batch: paired, so that luck cancels."""
        difference: np.ndarray = self.scored[name] - self.scored[BLIND]
        return difference


def sized(attacks: Sequence[Attack], simulated: int) -> list[Attack]:
    """The attacks with this number of simulated batches, where they simulate any."""
    return [
        dataclasses.replace(attack, simulated=simulated)  # type: ignore[type-var]
        if hasattr(attack, "simulated")
        else attack
        for attack in attacks
    ]


def draw_victims(
    client: Client, known: Knowledge, data: tuple[Tensor, Tensor], number: int, seed: int
) -> Victims:
    """``number`` batches of ``known.composition`` from ``data``, through the client."""
    assert known.num_classes is not None
    assert known.batch_size is not None
    pool = Pool.of(*data, known.num_classes)
    rng = np.random.default_rng([seed, 0x5BE0CD19])
    pairs = list(rehearse(client, pool, known.composition, known.batch_size, number, rng))
    return Victims([known.observe(m) for m, _ in pairs], np.stack([n for _, n in pairs]))


def play(
    attacks: Sequence[Attack], known: Knowledge, victims: Victims, calibration: int = CALIBRATION
) -> Scores:
    """Fit every attack and score it; the first batches calibrate, the others are scored.

    An attack that cannot be mounted has no score.
    """
    found = {}
    for attack in attacks:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                counts = attack.fit(known).infer(victims.seen)
        except NotApplicableError:
            continue
        found[attack_name(attack)] = success(counts.numpy(), victims.counts)
    return Scores(
        {name: values[:calibration] for name, values in found.items()},
        {name: values[calibration:] for name, values in found.items()},
    )


def interval(differences: np.ndarray) -> Interval:
    """95 % t-interval of the mean of paired differences."""
    shifted = t_interval((differences + 1) / 2)  # of shares, which lie in [0, 1]
    assert shifted is not None
    return 2 * shifted[0] - 1, 2 * shifted[1] - 1
