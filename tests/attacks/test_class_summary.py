"""Per-class numbers: the same for every class, blind to scale."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradguard.attacks.learning.class_summary import signed_root, summarise


def _head(
    seed: int, messages: int = 3, classes: int = 5, features: int = 7
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((messages, classes, features)).astype(np.float32)
    return weight, rng.standard_normal((messages, classes)).astype(np.float32)


@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_permuting_the_classes_permutes_the_numbers(seed: int, order: list[int]) -> None:
    weight, bias = _head(seed)
    direct = summarise(weight, bias)[:, order]
    np.testing.assert_allclose(summarise(weight[:, order], bias[:, order]), direct, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(1e-4, 1e4))
def test_a_positive_scale_changes_nothing(seed: int, scale: float) -> None:
    weight, bias = _head(seed)
    scaled = summarise(weight * np.float32(scale), bias * np.float32(scale))
    np.testing.assert_allclose(scaled, summarise(weight, bias), atol=1e-4)


def test_a_message_of_zeros_gives_finite_numbers() -> None:
    assert np.isfinite(summarise(np.zeros((2, 3, 4), np.float32), None)).all()


def test_the_share_of_negative_columns_is_counted_by_hand() -> None:
    weight = np.array([[[-1.0, -1.0, 2.0], [1.0, -3.0, 0.0]]], dtype=np.float32)
    numbers = summarise(weight, None)
    np.testing.assert_allclose(numbers[0, :, 1], [2 / 3, 1 / 3])  # negative
    np.testing.assert_allclose(numbers[0, :, 4], [1 / 3, 1 / 3])  # lowest and negative


def test_signed_roots_keep_the_sign_and_the_order() -> None:
    values = np.linspace(-5, 5, 41)
    rooted = signed_root(values)
    assert (np.diff(rooted) > 0).all()
    np.testing.assert_allclose(np.sign(rooted) * rooted**4, values, atol=1e-9)
