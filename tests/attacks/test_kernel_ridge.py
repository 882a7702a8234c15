"""Kernel ridge against a library's, and the kernel against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge as Reference

from gradguard.attacks.learning import kernel_ridge
from gradguard.attacks.learning.kernel_ridge import fit_kernel_ridge, screen


def test_the_linear_kernel_agrees_with_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((60, 12)), rng.random((60, 4))
    monkeypatch.setattr(kernel_ridge, "STRENGTHS", np.array([0.1]))
    ours, _ = fit_kernel_ridge(features, targets, features, lambda _: 0.0, "linear")
    new = rng.standard_normal((9, 12))
    standard = (features - features.mean(0)) / features.std(0) / np.sqrt(12)
    damping = 0.1 * np.linalg.eigvalsh(standard @ standard.T).mean()
    reference = Reference(alpha=damping).fit(standard, targets - targets.mean(0))
    expected = reference.predict((new - features.mean(0)) / features.std(0) / np.sqrt(12))
    np.testing.assert_allclose(ours.predict(new), expected + targets.mean(0), atol=1e-5)


def test_the_arc_cosine_kernel_is_the_expected_product_of_relus() -> None:
    """Cho and Saul 2009: k(x, y) = 2 E[relu(w.x) relu(w.y)] for standard normal w."""
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
    directions = rng.standard_normal((400_000, 4))  # 3 features and the constant one
    with_one = [np.concatenate([side, np.ones((len(side), 1))], axis=1) for side in (left, right)]
    active = [np.maximum(directions @ side.T, 0) for side in with_one]
    sampled = 2 * active[0].T @ active[1] / len(directions)
    np.testing.assert_allclose(
        kernel_ridge._gram(left, right, "arc-cosine"), sampled, rtol=0.02, atol=0.01
    )


def test_screening_finds_the_features_that_carry_the_target() -> None:
    rng = np.random.default_rng(2)
    features = rng.standard_normal((200, 20_000)).astype(np.float32)
    targets = features[:, [17, 15_000]].astype(np.float64)
    assert {17, 15_000} <= set(screen(features, targets, most=10).tolist())


def test_a_constant_feature_neither_fails_nor_is_screened_in() -> None:
    rng = np.random.default_rng(3)
    features = np.concatenate([np.ones((50, 30)), rng.standard_normal((50, 5))], axis=1)
    assert set(screen(features, features[:, 30:31], most=3).tolist()) <= set(range(30, 35))
    fitted, _ = fit_kernel_ridge(features, features[:, 30:31], features, lambda _: 0.0, "linear")
    assert np.isfinite(fitted.predict(features)).all()


@pytest.mark.parametrize("peak", range(6))
def test_the_climb_finds_the_peak_wherever_it_is(peak: int) -> None:
    asked: list[int] = []

    def solved(strength: float) -> kernel_ridge._Solved:
        asked.append(int(np.flatnonzero(strength == kernel_ridge.STRENGTHS)[0]))
        return kernel_ridge._Solved(np.zeros(1), np.zeros(1), -abs(asked[-1] - peak))

    assert kernel_ridge._climbed(solved).score == 0.0
    assert len(asked) == len(set(asked)), "a strength was solved twice"


def test_among_equal_strengths_the_strongest_is_taken() -> None:
    def solved(strength: float) -> kernel_ridge._Solved:
        return kernel_ridge._Solved(np.array([strength]), np.zeros(1), 0.0)

    assert kernel_ridge._climbed(solved).weights[0] == kernel_ridge.STRENGTHS[-1]


def test_the_answers_returned_are_those_it_predicts() -> None:
    rng = np.random.default_rng(5)
    features, held_out = rng.standard_normal((40, 9)), rng.standard_normal((7, 9))
    fitted, answers = fit_kernel_ridge(
        features, rng.random((40, 3)), held_out, lambda _: 0.0, "arc-cosine"
    )
    np.testing.assert_allclose(fitted.predict(held_out), answers)


def test_the_strength_is_the_one_that_scores_best_on_held_out_messages() -> None:
    rng = np.random.default_rng(4)
    truth = rng.standard_normal((30, 2))
    features, held_out = rng.standard_normal((80, 30)), rng.standard_normal((80, 30))
    targets = features @ truth + 3.0 * rng.standard_normal((80, 2))

    def score(predicted: np.ndarray) -> float:
        return -float(((predicted - held_out @ truth) ** 2).mean())

    chosen, _ = fit_kernel_ridge(features, targets, held_out, score, "linear")
    weakest, _ = fit_kernel_ridge(
        features, targets, held_out, lambda p: float(np.abs(p).sum()), "linear"
    )
    assert score(chosen.predict(held_out)) > score(weakest.predict(held_out))


@pytest.mark.parametrize("kernel", ["linear", "arc-cosine"])
def test_features_along_one_direction_are_solved(kernel: kernel_ridge.Kernel) -> None:
    """Messages that differ by a factor alone; in single precision the solve broke down."""
    rng = np.random.default_rng(0)
    features = np.exp(rng.normal(size=(1000, 1))) @ rng.normal(size=(1, 800))
    targets = rng.random((1000, 4))
    fitted, _ = fit_kernel_ridge(
        features.astype(np.float32), targets, features[:9], lambda _: 0.0, kernel
    )
    assert np.isfinite(fitted.predict(features[:9])).all()
