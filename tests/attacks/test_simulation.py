"""Rehearsal: batches with the wanted counts, and pools that share no image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard.attacks.simulation import Pool, rehearse


def _pool(sizes: list[int]) -> Pool:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Pool.of(torch.arange(len(labels)).float(), labels, len(sizes))


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(lambda s: max(s) > 1),
    st.integers(0, 99),
)
def test_the_two_halves_share_no_image_and_lose_none(sizes: list[int], seed: int) -> None:
    pool = _pool(sizes)
    first, second = pool.split(0.75, np.random.default_rng(seed))
    rows = [np.concatenate(half.by_class) for half in (first, second)]
    assert not set(rows[0]) & set(rows[1])
    assert len(rows[0]) + len(rows[1]) == sum(sizes)


@given(st.integers(0, 1000))
def test_a_drawn_batch_has_the_counts_that_were_asked_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, size=3)
    counts[0] += 1
    inputs, labels = _pool([3, 9, 4]).draw(counts, rng)
    assert torch.bincount(labels, minlength=3).tolist() == counts.tolist()
    if counts[1] <= 9:  # enough images of that class: none twice
        assert len(set(inputs[labels == 1].tolist())) == counts[1]


def test_a_class_without_images_is_given_to_others() -> None:
    rng = np.random.default_rng(0)
    feasible = _pool([0, 5, 5]).feasible(np.array([4, 2, 2]), rng)
    assert feasible[0] == 0
    assert feasible.sum() == 8


def test_rehearsed_counts_are_those_of_the_batch_the_client_saw() -> None:
    def client(inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"counts": torch.bincount(labels, minlength=3)}

    rng = np.random.default_rng(0)
    for message, counts in rehearse(client, _pool([5, 5, 5]), None, 6, 20, rng):
        assert message["counts"].tolist() == counts.tolist()


def test_labels_that_do_not_match_the_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="as many labels as examples"):
        Pool.of(torch.zeros(3), torch.zeros(2, dtype=torch.int64), 2)


def test_labels_outside_of_the_classes_are_refused_and_not_left_out() -> None:
    with pytest.raises(ValueError, match=r"must lie in 0..2, got 0..3"):
        Pool.of(torch.zeros(4), torch.arange(4), 3)
