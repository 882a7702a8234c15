"""Guesses for the highest expected overlap under a posterior."""

from __future__ import annotations

import itertools

import numpy as np

from gradguard.attacks.templates.posterior import Prior, draw_prior, posterior_counts
from gradguard.attacks.templates.simplex_regression import normal_equations, solve_counts


def test_prior_has_each_batch_once_with_its_share() -> None:
    prior = draw_prior("single", 5, (0.25,) * 4)
    assert sorted(map(tuple, prior.counts.tolist())) == sorted(
        map(tuple, (5 * np.eye(4, dtype=int)).tolist())
    )
    np.testing.assert_allclose(np.exp(prior.log_weight), 0.25, atol=0.02)


def test_prior_is_the_same_for_the_same_arguments() -> None:
    draw_prior.cache_clear()
    one = draw_prior("dirichlet:1", 6, (0.5, 0.5))
    draw_prior.cache_clear()
    np.testing.assert_array_equal(one.counts, draw_prior("dirichlet:1", 6, (0.5, 0.5)).counts)


def test_no_guess_has_a_higher_expected_overlap() -> None:
    rng = np.random.default_rng(0)
    every = np.array([n for n in itertools.product(range(5), repeat=3) if sum(n) == 4])
    prior = Prior(every, np.log(rng.dirichlet(np.ones(len(every)))), -9.0)
    templates = rng.normal(size=(3, 6))
    a, b = normal_equations(rng.normal(size=(4, 6)), templates, np.ones(6), masked=False)
    found = posterior_counts(a, b, prior=prior, likely=None, temperature=2.0)
    for guess, right in zip(found, b, strict=True):
        log = (every @ right - np.einsum("nc,cd,nd->n", every, a[0], every) / 2) / (4 * 2.0)
        weights = np.exp(log + prior.log_weight)
        expected = [weights @ np.minimum(every, other).sum(axis=1) for other in every]
        own = weights @ np.minimum(every, guess).sum(axis=1)
        assert own >= max(expected) * (1 - 1e-5)


def test_answer_outside_the_drawn_batches_is_found_through_least_squares() -> None:
    prior = Prior(np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4]]), np.log(np.full(3, 1 / 3)), -5.0)
    truth = np.array([[1, 2, 1]])
    a, b = 100 * np.eye(3)[None], 100.0 * truth
    assert (posterior_counts(a, b, prior=prior, likely=truth, temperature=1.0) == truth).all()
    confined = posterior_counts(a, b, prior=prior, likely=None, temperature=1.0)
    assert confined.tolist() == [[0, 4, 0]]


def test_under_noise_it_beats_least_squares() -> None:
    rng = np.random.default_rng(1)
    prior = draw_prior("skewed", 8, (0.1,) * 10)
    truth = prior.counts[rng.choice(len(prior.counts), 200, p=np.exp(prior.log_weight))]
    templates = rng.normal(size=(10, 40))
    noise = 1.5 * 8**0.5  # the likelihood's own scale: variance B times that of weight 1
    messages = truth @ templates + noise * rng.normal(size=(200, 40))
    a, b = normal_equations(messages, templates, np.full(40, 1.5**-2), masked=False)
    sizes = np.full(200, 8)
    squares = np.rint(solve_counts(a, b, sizes, free=False, ridge=1e-6))
    guess = posterior_counts(a, b, prior=prior, likely=None, temperature=1.0)
    gain = np.minimum(guess, truth).sum() - np.minimum(squares, truth).sum()
    assert gain > 0.03 * truth.sum()
