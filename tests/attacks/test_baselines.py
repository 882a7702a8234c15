"""The blind baselines: golden values, optimality, determinism."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gradguard.attacks import BestConstant, Knowledge, Observation, RandomGuess
from gradguard.attacks.baselines import greedy_constant_guess, iid_tails, sampled_tails
from gradguard.attacks.composition import draw_counts

# Verified by enumeration and simulation before this code was written.
UNIFORM = {
    (1, 2): 0.5,
    (8, 2): 0.863281,
    (256, 2): 0.975090,
    (1, 10): 0.1,
    (2, 10): 0.19,
    (4, 10): 0.3439,
    (8, 10): 0.569533,
    (32, 10): 0.788280,
    (128, 10): 0.894171,
    (256, 10): 0.925054,
    (8, 100): 0.077255,
    (128, 100): 0.645617,
}
SKEWED_PRIOR = {1: 0.5, 8: 0.708834, 32: 0.844304, 128: 0.919106}


def observations(number: int, size: int, classes: int) -> list[Observation]:
    return [Observation({"w": torch.zeros(classes, 2)}, size, classes) for _ in range(number)]


@pytest.mark.parametrize(("setting", "expected"), UNIFORM.items())
def test_best_constant_guess_matches_the_golden_value(
    setting: tuple[int, int], expected: float
) -> None:
    size, classes = setting
    known = Knowledge(num_classes=classes, batch_size=size, composition="iid")
    guess, value = BestConstant().fit(known).best(size)
    assert value == pytest.approx(expected, abs=1e-6)
    assert np.ptp(guess) <= 1


@pytest.mark.parametrize(("size", "expected"), SKEWED_PRIOR.items())
def test_best_constant_guess_for_a_skewed_prior_matches_the_golden_value(
    size: int, expected: float
) -> None:
    prior = np.array([0.5, 0.25] + [0.03125] * 8)
    _, value = greedy_constant_guess(iid_tails(size, prior), size)
    assert value == pytest.approx(expected, abs=1e-6)


def test_no_other_constant_answer_does_better() -> None:
    size, prior = 5, np.array([0.6, 0.25, 0.15])
    tails = iid_tails(size, prior)
    guess, value = greedy_constant_guess(tails, size)
    every = [g for g in itertools.product(range(size + 1), repeat=3) if sum(g) == size]
    values = [sum(tails[c, :k].sum() for c, k in enumerate(g)) / size for g in every]
    assert value == pytest.approx(max(values))
    assert guess.sum() == size


@pytest.mark.parametrize("composition", ["skewed", "single", "dirichlet:0.1", None])
def test_expected_success_is_the_success_on_fresh_batches(composition: str | None) -> None:
    known = Knowledge(num_classes=10, batch_size=8, composition=composition)
    guess, value = BestConstant().fit(known).best(8)
    rng = np.random.default_rng(123)
    drawn = np.stack([draw_counts(composition, 10, 8, rng) for _ in range(4000)])
    scores = np.minimum(drawn, guess).sum(axis=1) / 8
    assert scores.mean() == pytest.approx(value, abs=0.02)


def test_sampled_and_exact_tails_agree() -> None:
    sampled = sampled_tails("iid", num_classes=10, batch_size=16, seed=1)
    np.testing.assert_allclose(sampled, iid_tails(16, np.full(10, 0.1)), atol=0.01)


def test_uneven_auxiliary_labels_are_the_prior_behind_iid() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    known = Knowledge(
        auxiliary=(torch.zeros(100, 1), labels), num_classes=2, batch_size=8, composition="iid"
    )
    guess, _ = BestConstant().fit(known).best(8)
    assert guess.tolist() == [7, 1]


def test_chance_imbalance_of_auxiliary_labels_is_not_followed() -> None:
    labels = torch.tensor([0] * 55 + [1] * 45)
    known = Knowledge(
        auxiliary=(torch.zeros(100, 1), labels), num_classes=2, batch_size=8, composition="iid"
    )
    assert BestConstant().fit(known).best(8)[0].tolist() == [4, 4]


def test_random_guess_has_the_expected_success() -> None:
    counts = RandomGuess().fit(Knowledge(seed=5)).infer(observations(4000, 8, 10)).numpy()
    truth = np.random.default_rng(0).multinomial(8, np.full(10, 0.1), size=4000)
    # (C/B) sum over k of P(Bin(B, 1/C) >= k)^2
    assert np.minimum(counts, truth).sum() / truth.sum() == pytest.approx(0.450967, abs=0.01)


def test_random_guesses_differ_between_seeds() -> None:
    one, other = (
        RandomGuess().fit(Knowledge(seed=s)).infer(observations(9, 8, 10)) for s in (0, 1)
    )
    assert not torch.equal(one, other)


def test_unusable_input_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        BestConstant().fit(Knowledge(num_classes=3))
    with pytest.raises(ValueError, match="at least one"):
        RandomGuess().fit(Knowledge()).infer([])
    with pytest.raises(ValueError, match="fitted for 3 classes"):
        BestConstant().fit(Knowledge(num_classes=3, batch_size=4)).infer(observations(1, 4, 2))
    with pytest.raises(ValueError, match="sum to 1"):
        iid_tails(4, [0.5, 0.6])
    with pytest.raises(ValueError, match="levels"):
        greedy_constant_guess(np.ones((2, 3)), 4)


def test_uneven_auxiliary_labels_do_not_move_the_guess_for_a_symmetric_generator() -> None:
    even, uneven = torch.arange(400) % 10, torch.arange(400) // 300
    guesses = [
        BestConstant()
        .fit(
            Knowledge(
                num_classes=10,
                batch_size=7,
                composition="skewed",
                auxiliary=(torch.zeros(400, 1), labels),
            )
        )
        .best(7)
        for labels in (even, uneven)
    ]
    np.testing.assert_array_equal(guesses[0][0], guesses[1][0])
