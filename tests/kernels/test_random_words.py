"""Sixteen random bits for every coordinate, from a stream that a seed reproduces."""

from __future__ import annotations

import torch

from gradguard.kernels.random_words import sixteen_bits, words_from
from gradguard.randomness import generator, seeded_rng


def test_every_value_is_equally_likely() -> None:
    words = words_from(generator(seeded_rng(3)))
    counts = torch.bincount(sixteen_bits(words, 2**22).int() + 32768, minlength=65536).double()
    expected = 2**22 / 65536
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 65535) < 6 * (2 * 65535) ** 0.5


def test_neighbours_and_bits_are_not_correlated() -> None:
    draws = sixteen_bits(words_from(generator(seeded_rng(4))), 2**18).double() / 2**15
    for lag in (1, 2, 3, 4, 8):
        correlation = float((draws[:-lag] * draws[lag:]).mean()) * 3  # the variance is a third
        assert abs(correlation) < 6 / 2**9


def test_a_stream_goes_on_and_another_seed_gives_another() -> None:
    rng = generator(seeded_rng(5))
    first, second = words_from(rng), words_from(rng)
    again = words_from(generator(seeded_rng(5)))
    assert torch.equal(sixteen_bits(first, 9), sixteen_bits(again, 9))
    assert not torch.equal(sixteen_bits(first, 9), sixteen_bits(again, 9)[:9].flip(0))
    assert not torch.equal(sixteen_bits(second, 9), sixteen_bits(words_from(rng), 9))
    assert len(sixteen_bits(first, 0)) == 0
