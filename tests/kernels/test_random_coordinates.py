from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradguard.kernels.random_coordinates import draw_coordinates


def _first_different(seed: int, size: int, count: int) -> list[int]:
    """Slow and obvious: take words one by one until enough different numbers were seen."""
    words = np.random.Philox(key=seed)
    seen: set[int] = set()
    while len(seen) < count:
        word = int(words.random_raw())
        if word < 2**64 // size * size:
            seen.add(word % size)
    return sorted(seen)


@given(st.integers(0, 2**64 - 1), st.integers(1, 5000), st.floats(0, 0.5))
def test_it_is_the_first_different_numbers_of_the_stream(
    seed: int, size: int, share: float
) -> None:
    count = int(share * size)
    assert draw_coordinates(seed, size, count).tolist() == _first_different(seed, size, count)


@given(st.integers(0, 2**64 - 1), st.integers(1, 5000), st.floats(0.5, 1, exclude_min=True))
def test_of_more_than_half_the_others_are_drawn(seed: int, size: int, share: float) -> None:
    count = max(int(share * size), size // 2 + 1)
    out = _first_different(seed, size, size - count)
    assert draw_coordinates(seed, size, count).tolist() == sorted(set(range(size)) - set(out))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.integers(0, 300))
def test_exactly_count_sorted_distinct_coordinates_in_range(
    seed: int, size: int, count: int
) -> None:
    count = min(size, count)
    drawn = draw_coordinates(seed, size, count)
    assert drawn.dtype == np.int64
    assert len(drawn) == count
    assert bool((np.diff(drawn) > 0).all())
    assert not count or (drawn[0] >= 0 and drawn[-1] < size)


@pytest.mark.parametrize("size", [0, 1, 2, 100])
def test_none_and_all_of_them(size: int) -> None:
    assert draw_coordinates(1, size, 0).tolist() == []
    assert draw_coordinates(1, size, size).tolist() == list(range(size))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((7, 1000, 5), [30, 120, 522, 655, 692]),
        ((12345, 16, 12), [2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15]),
        ((0, 300, 4), [59, 156, 158, 249]),
        (
            (2**64 - 1, 2**62, 3),
            [2973196994714004356, 4008675761200498391, 4333907348786404347],
        ),
    ],
)
def test_the_draw_is_the_same_in_every_version(
    arguments: tuple[int, int, int], expected: list[int]
) -> None:
    """Golden: a message from today must be decoded by every later version."""
    assert draw_coordinates(*arguments).tolist() == expected


def test_another_seed_draws_others() -> None:
    draws = {tuple(draw_coordinates(seed, 10_000, 20).tolist()) for seed in range(1000)}
    assert len(draws) == 1000


def _p_value(counts: np.ndarray, expected: float, variance: float, freedom: int) -> float:
    """Of equally correlated counts with a fixed sum, scaled so that chi-square fits."""
    statistic = float(((counts - expected) ** 2).sum()) / variance * (freedom / len(counts))
    return float(stats.chi2.sf(statistic, freedom))


@pytest.mark.parametrize(("size", "count"), [(500, 5), (500, 60), (12, 6), (20, 13), (9, 8)])
def test_every_coordinate_is_equally_likely(size: int, count: int) -> None:
    draws = 4000
    counts = np.zeros(size)
    for seed in range(draws):
        counts[draw_coordinates(seed, size, count)] += 1
    share = count / size
    assert 1e-4 < _p_value(counts, draws * share, draws * share * (1 - share), size - 1) < 1 - 1e-4


def test_the_test_of_uniformity_has_power() -> None:
    """Words modulo a mask that is no multiple: the first coordinates come twice as often."""
    draws, size = 4000, 12
    words = np.random.Philox(key=1).random_raw(draws) % np.uint64(16) % np.uint64(size)
    counts = np.bincount(words.astype(np.int64), minlength=size).astype(float)
    assert _p_value(counts, draws / size, draws / size * (1 - 1 / size), size - 1) < 1e-6


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_set_is_equally_likely(count: int) -> None:
    """Not each coordinate alone: pairs and larger sets come as often as they should."""
    size, draws = 6, 6000
    seen: dict[bytes, int] = {}
    for seed in range(draws):
        key = draw_coordinates(seed, size, count).tobytes()
        seen[key] = seen.get(key, 0) + 1
    sets = {2: 15, 3: 20, 4: 15}[count]
    assert len(seen) == sets
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10, 1), "seed must lie in 0 to"),
        ((2**64, 10, 1), "seed must lie in 0 to"),
        ((0, -1, 0), "size must lie in 0 to"),
        ((0, 2**62 + 1, 0), "size must lie in 0 to"),
        ((0, 10, 11), "count must lie in 0 to size = 10, got 11"),
        ((0, 10, -1), "count must lie in 0 to size = 10, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_coordinates(*arguments)
