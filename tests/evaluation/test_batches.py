from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard.evaluation.batches import draw_batches
from gradguard.evaluation.data import Data

IMAGES = Data("d", torch.arange(80.0).reshape(80, 1, 1, 1), torch.arange(80) % 4, 4)
POOL = np.arange(0, 60)


@pytest.mark.parametrize("composition", ["iid", "skewed", "single", "dirichlet:0.3"])
def test_a_batch_has_its_counts_and_comes_from_the_pool(composition: str) -> None:
    for batch in draw_batches(
        IMAGES, POOL, composition=composition, batch_size=12, number=20, seed=0
    ):
        assert np.array_equal(np.bincount(batch.labels.numpy(), minlength=4), batch.counts)
        assert batch.counts.sum() == 12
        drawn = batch.inputs.flatten().tolist()
        assert set(drawn) <= set(POOL.tolist())
        assert [int(i) % 4 for i in drawn] == batch.labels.tolist()
        assert len(set(drawn)) == 12


def test_a_class_too_small_for_the_batch_is_drawn_with_replacement() -> None:
    (batch,) = draw_batches(IMAGES, POOL, composition="single", batch_size=40, number=1, seed=0)
    assert batch.counts.max() == 40


def test_batches_are_decided_by_their_seed() -> None:
    first, again, other = (
        draw_batches(IMAGES, POOL, composition="iid", batch_size=8, number=3, seed=seed)
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, other, strict=True))
