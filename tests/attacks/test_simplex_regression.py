"""Constrained least squares for label counts."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from gradguard.attacks.templates.simplex_regression import normal_equations, solve_counts


def problem(
    seed: int, messages: int = 6, classes: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    templates = rng.normal(size=(classes, 50)).astype(np.float32)
    counts = rng.multinomial(12, np.full(classes, 1 / classes), size=messages)
    messages_ = (counts @ templates).astype(np.float32)
    return messages_, templates, rng.uniform(0.5, 2, 50).astype(np.float32), counts


def test_counts_of_exact_mixtures_are_recovered() -> None:
    messages, templates, weights, counts = problem(0)
    for free in (False, True):
        a, b = normal_equations(messages, templates, weights, masked=False)
        found = solve_counts(a, b, counts.sum(axis=1), free=free, ridge=1e-9)
        np.testing.assert_allclose(found, counts, atol=1e-3)


def test_solution_is_that_of_a_general_optimiser() -> None:
    messages, templates, weights, _ = problem(1, messages=3)
    messages = (
        messages + np.random.default_rng(2).normal(size=messages.shape).astype(np.float32) * 9
    )
    a, b = normal_equations(messages, templates, weights, masked=False)
    found = solve_counts(a, b, np.full(3, 12), free=False, ridge=1e-9)
    for message, own in zip(messages, found, strict=True):

        def loss(n: np.ndarray, message: np.ndarray = message) -> float:
            return float((weights * (message - n @ templates) ** 2).sum())

        constraint = {"type": "eq", "fun": lambda n: n.sum() - 12}
        best = minimize(loss, np.full(4, 3.0), bounds=[(0, None)] * 4, constraints=constraint)
        assert loss(own) <= best.fun * (1 + 1e-3)


def test_unknown_scale_is_fitted_where_it_is_free() -> None:
    messages, templates, weights, counts = problem(3)
    a, b = normal_equations(0.01 * messages, templates, weights, masked=False)
    sizes = counts.sum(axis=1)
    free = solve_counts(a, b, sizes, free=True, ridge=1e-9)
    np.testing.assert_allclose(free, counts, atol=1e-2)
    fixed = solve_counts(a, b, sizes, free=False, ridge=1e-9)
    assert np.abs(fixed - counts).max() > 1


def test_masked_systems_use_only_what_survived() -> None:
    messages, templates, weights, counts = problem(4)
    dropped = np.random.default_rng(5).random(messages.shape) < 0.7
    sent = np.where(dropped, np.float32(0), messages)
    sizes = counts.sum(axis=1)
    a, b = normal_equations(sent, templates, weights, masked=True)
    np.testing.assert_allclose(solve_counts(a, b, sizes, free=False, ridge=1e-9), counts, atol=1e-2)
    a, b = normal_equations(sent, templates, weights, masked=False)
    assert np.abs(solve_counts(a, b, sizes, free=False, ridge=1e-9) - counts).max() > 0.5


def test_message_without_information_gives_the_even_spread() -> None:
    _, templates, weights, _ = problem(6)
    for masked in (True, False):
        a, b = normal_equations(
            np.zeros((1, 50), np.float32), 0 * templates, weights, masked=masked
        )
        for free in (True, False):
            found = solve_counts(a, b, np.array([8]), free=free, ridge=1e-6)
            np.testing.assert_allclose(found, [[2, 2, 2, 2]])
