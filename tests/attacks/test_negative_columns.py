"""Counts from the number of negative columns in each class row of the head's gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard.attacks import Knowledge, NegativeColumns, Observation
from tests.attacks.models import batches, cnn, overlap, skewed


def test_multiplying_a_message_by_a_positive_number_changes_nothing() -> None:
    fitted = NegativeColumns().fit(Knowledge())
    seen = [o for _, _, o in batches(cnn(), skewed(10))]
    scaled = [Observation({n: 1e-3 * t for n, t in o.update.items()}, 8, 4) for o in seen]
    assert torch.equal(fitted.infer(seen), fitted.infer(scaled))


def test_without_negative_entries_the_answer_is_the_even_spread() -> None:
    seen = [Observation({"w": torch.zeros(4, 3)}, 6, 4)]
    assert NegativeColumns().fit(Knowledge()).infer(seen).tolist() == [[2, 2, 1, 1]]


def test_counts_follow_the_number_of_negative_entries() -> None:
    weight = torch.ones(3, 6)
    weight[0, :4] = -1
    weight[2, 5] = -9
    seen = [Observation({"w": weight}, 10, 3)]
    assert NegativeColumns().fit(Knowledge()).infer(seen).tolist() == [[8, 0, 2]]


def test_batches_of_one_class_are_read_perfectly_where_features_are_not_negative() -> None:
    counts = 16 * np.eye(4, dtype=np.int64)
    seen = [o for _, _, o in batches(cnn(), counts)]
    assert overlap(NegativeColumns().fit(Knowledge()).infer(seen), counts) == 1.0


def test_gradient_that_is_not_finite_is_refused() -> None:
    seen = [Observation({"w": torch.full((3, 2), float("nan"))}, 4, 3)]
    with pytest.raises(ValueError, match="finite"):
        NegativeColumns().fit(Knowledge()).infer(seen)
