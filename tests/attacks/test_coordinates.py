"""A bounded choice of coordinates: all where they fit, otherwise what matters and a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard.attacks.coordinates import Coordinates, choose_coordinates, spread, unit_of


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


@given(st.floats(1e-300, 1e300), st.booleans())
def test_the_unit_is_a_power_of_two_that_brings_the_largest_magnitude_near_one(
    largest: float, negative: bool
) -> None:
    value = -largest if negative else largest
    message = {"a": torch.tensor([value, 0.0], dtype=torch.float64), "b": torch.zeros(0)}
    unit = unit_of([message])
    assert math.frexp(unit)[0] == 0.5
    assert 0.5 <= largest * unit < 1


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_the_unit_of_zeros_and_of_what_is_not_finite_is_one(value: float) -> None:
    assert unit_of([{"a": torch.tensor([value])}]) == 1


def test_tiny_and_huge_magnitudes_survive_the_way_to_single_precision() -> None:
    for size in (1e-60, 1e60):
        message = {"a": torch.tensor([1.0, -0.5], dtype=torch.float64) * size}
        read = Coordinates({"a": None}, unit_of([message])).read(message)
        assert read[1] / read[0] == pytest.approx(-0.5)
        assert 0.5 <= read[0] <= 1
