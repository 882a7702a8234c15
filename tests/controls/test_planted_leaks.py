"""Label counts planted in one place of a message, whatever the place, are found.

Each client sends noise, with the counts in the low bits of one coordinate, in norms, in the pattern
of zeros, in the order of magnitudes or in one bias. An attacker that rehearses has to find them
without being told where to look. The report's worst case must show it: chosen on calibration
batches, scored on others.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard.attacks import BASELINES, Attack, Ensemble, Knowledge, LearnedRegression
from gradguard.attacks.composition import draw_counts
from gradguard.attacks.simulation import Message
from tests.attacks import models
from tests.controls.bench import CALIBRATION, Scores, draw_victims, play
from tests.controls.planted import BATCH, PLANTS, RESCALED, Plant, everything, images

SCORED = 240

# No published attack and no template knows these places. These two share one rehearsal.
ATTACKS: tuple[Attack, ...] = (*BASELINES, LearnedRegression(), Ensemble())


def find(plant: Plant) -> Scores:
    """What attackers that rehearse find of a plant."""
    known = plant.knowledge()
    data = images(plant.classes, seed=2)
    victims = draw_victims(plant.client(seed=1), known, data, CALIBRATION + SCORED, seed=1)
    return play(ATTACKS, known, victims)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    [*PLANTS, *(plant for plant in RESCALED if plant.says is everything)],
    ids=lambda plant: plant.name,
)
def test_a_planted_leak_is_found(plant: Plant) -> None:
    scores = find(plant)
    assert scores.advantage(scores.worst) >= 0.5


@pytest.mark.parametrize("plant", PLANTS, ids=repr)
def test_what_is_planted_is_enough(plant: Plant) -> None:
    """Half of what there is to gain is asked for; a perfect reader has more."""
    read, blind = plant.ceiling(draws=4000)
    assert (read - blind) / (1 - blind) >= 0.6


@pytest.mark.parametrize("plant", PLANTS, ids=repr)
def test_nothing_is_planted_but_what_the_plant_says(plant: Plant) -> None:
    """Counts that are said alike give bitwise the same message, all else being equal."""
    rng = np.random.default_rng(0)
    drawn = [draw_counts(plant.composition, plant.classes, BATCH, rng) for _ in range(20)]
    told: dict[object, Message] = {}
    for counts in drawn:
        labels = torch.from_numpy(np.repeat(np.arange(plant.classes), counts))
        message = plant.client(seed=0)(torch.zeros(BATCH), labels)
        before = told.setdefault(plant.says(counts), message)
        assert all(torch.equal(message[name], before[name]) for name in message)
    assert len(told) > 1
    first, second = list(told.values())[:2]
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("plant", [p for p in PLANTS if "low bits" in p.name], ids=repr)
def test_what_low_bits_tell_shows_in_no_value(plant: Plant) -> None:
    """Replacing them moves the coordinate by less than a hundredth of itself."""
    labels = torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH) % plant.classes
    one, other = (plant.client(seed=0)(torch.zeros(BATCH), which) for which in labels)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0.01, atol=0)


@pytest.mark.slow
def test_a_bias_of_the_body_that_is_all_that_is_sent_tells_the_labels() -> None:
    """Not planted: six numbers of the first convolution's real gradient."""
    model = models.cnn()

    def client(inputs: torch.Tensor, labels: torch.Tensor) -> Message:
        sent = models.gradient(model, inputs, labels)
        return {n: t if n == "0.bias" else torch.zeros_like(t) for n, t in sent.items()}

    known = models.knowledge(model, client=client)
    scores = _real(known)
    assert scores.advantage(scores.worst) >= 0.5


def _real(known: Knowledge) -> Scores:
    assert known.client is not None
    victims = draw_victims(known.client, known, models.data(200, 2), CALIBRATION + SCORED, seed=1)
    return play(ATTACKS, known, victims)
