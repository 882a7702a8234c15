"""Where a message says nothing, no attacker claims to have read anything.

Two hundred clients whose messages do not depend on their labels. By chance alone, the interval of
an attacker's advantage lies above zero in 2.5 % of them, so that 5 % are allowed. An interval
below zero is an attacker worse than a blind guess: an understatement and no false alarm.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.attacks import models
from tests.controls.bench import interval
from tests.controls.silence import CELLS, KINDS, WORST, listen, silent


@pytest.mark.slow
def test_no_attacker_claims_to_read_silent_messages() -> None:
    heard = listen()
    assert heard.cells[WORST] == CELLS
    alarms = {name: number for name, number in heard.above.items() if number > 0.05 * CELLS}
    assert alarms == {}


@pytest.mark.slow
def test_the_worst_case_of_silent_messages_is_seldom_below_blind() -> None:
    """The blind guess is a candidate: what loses on calibration batches is not reported."""
    assert listen().gain[WORST] > -0.01


@pytest.mark.parametrize("kind", KINDS)
def test_silent_messages_do_not_depend_on_images_or_labels(kind: str) -> None:
    inputs, labels = models.data(8, seed=3)
    one = silent(kind, 5)(inputs, labels)
    other = silent(kind, 5)(torch.zeros_like(inputs), torch.zeros_like(labels))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_attacker_who_peeks_at_one_batch_in_ten_is_noticed() -> None:
    """Right by chance in half of the labels, and wholly right where it peeks."""
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(100):
        blind = rng.binomial(8, 0.5, 80) / 8
        peeked = np.where(rng.random(80) < 0.1, 1.0, rng.permutation(blind))
        noticed += interval(peeked - blind)[0] > 0
    assert noticed >= 15


def test_an_attacker_as_good_as_a_blind_guess_is_seldom_accused() -> None:
    rng = np.random.default_rng(1)
    pairs = rng.binomial(8, 0.5, (400, 2, 80)) / 8
    accused = sum(interval(one - other)[0] > 0 for one, other in pairs)
    assert accused <= 0.05 * len(pairs)
