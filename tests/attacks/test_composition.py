"""The generators of batch compositions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard.attacks.composition import draw_counts

compositions = st.sampled_from(["iid", "skewed", "single", "dirichlet:0.05", "dirichlet:5", None])


@given(compositions, st.integers(1, 12), st.integers(1, 40), st.integers(0, 100))
def test_counts_are_non_negative_and_sum_to_the_batch(
    composition: str | None, classes: int, size: int, seed: int
) -> None:
    counts = draw_counts(composition, classes, size, np.random.default_rng(seed))
    assert counts.shape == (classes,)
    assert (counts >= 0).all()
    assert counts.sum() == size


@given(st.integers(0, 200))
def test_skewed_batches_are_half_one_class_and_a_quarter_another(seed: int) -> None:
    counts = np.sort(draw_counts("skewed", 10, 64, np.random.default_rng(seed)))
    assert counts[-1] >= 32
    assert counts[-2] >= 16 or counts[-1] >= 48
    assert counts[-2] + counts[-1] >= 48


def test_single_batches_have_one_class() -> None:
    rng = np.random.default_rng(0)
    assert {(draw_counts("single", 5, 9, rng) > 0).sum() for _ in range(20)} == {1}


def test_prior_is_behind_iid() -> None:
    rng = np.random.default_rng(0)
    prior = np.array([0.7, 0.3, 0.0])
    drawn = np.stack([draw_counts("iid", 3, 50, rng, prior) for _ in range(400)])
    np.testing.assert_allclose(drawn.mean(axis=0) / 50, prior, atol=0.02)


@pytest.mark.parametrize("name", ["", "uniform", "dirichlet", "dirichlet:0", "dirichlet:nan"])
def test_unknown_compositions_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="composition must be one of"):
        draw_counts(name, 3, 4, np.random.default_rng(0))
