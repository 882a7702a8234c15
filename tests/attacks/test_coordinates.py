"""A bounded choice of coordinates: all where they fit, otherwise what matters and a sample."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard.attacks.coordinates import choose_coordinates, spread


def test_everything_is_read_where_it_fits() -> None:
    message = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([9.0])}
    chosen = choose_coordinates([message], ["a", "b"], 7, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen.read(message), [0, 1, 2, 3, 4, 5, 9])


@given(st.integers(2, 60), st.integers(61, 300), st.integers(0, 1000))
def test_exactly_the_limit_is_kept_sorted_and_distinct(limit: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = spread(rng.random(size), limit, rng)
    assert len(kept) == limit
    assert (np.diff(kept) > 0).all()
    assert 0 <= kept[0] <= kept[-1] < size


def test_what_survives_a_sparsifier_is_kept() -> None:
    message = {"a": torch.zeros(100, 100), "b": torch.zeros(50)}
    message["a"][3, 7] = 5.0
    message["b"][11] = -2.0
    chosen = choose_coordinates([message], ["a", "b"], 8, np.random.default_rng(0))
    read = chosen.read(message)
    assert read.shape == (8,)
    assert {5.0, -2.0} <= set(read.tolist())
