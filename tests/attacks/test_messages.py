"""Reading the head out of messages, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gradguard.attacks.head import HeadNotFoundError, find_head, head_module
from gradguard.attacks.messages import as_counts, batch_sizes, head_biases, row_sums
from gradguard.attacks.threat import Observation
from tests.attacks.models import CLASSES, batches, cnn, skewed


def observation(size: int = 4, classes: int = 3, steps: int = 1) -> Observation:
    return Observation({"w": torch.ones(classes, 2)}, size, classes, local_steps=steps)


def test_head_is_the_last_matrix_with_a_row_per_class() -> None:
    update = {
        "a.weight": torch.zeros(3, 5),
        "b.weight": torch.zeros(3, 7),
        "b.bias": torch.zeros(3),
        "c.weight": torch.zeros(2, 3),
    }
    assert find_head(update, 3).weight == "b.weight"
    assert find_head(update, 3).bias == "b.bias"
    assert find_head(update, 3).layer == "b"
    assert find_head(update, 3, "a").weight == "a.weight"
    assert find_head(update, 3, "a").bias is None


def test_head_that_is_not_there_is_an_error_that_lists_the_matrices() -> None:
    with pytest.raises(HeadNotFoundError, match=r"7 rows.*'w': \(3, 2\)"):
        find_head({"w": torch.ones(3, 2)}, 7)


def test_head_module_is_the_linear_layer() -> None:
    model = cnn()
    assert head_module(model, CLASSES) is model[5]
    bare = torch.nn.Bilinear(2, 2, CLASSES)
    bare.register_parameter("extra", torch.nn.Parameter(torch.ones(CLASSES, 2)))
    with pytest.raises(HeadNotFoundError, match="Linear"):
        head_module(bare, CLASSES)


def test_row_sums_and_biases_are_stacked_in_order() -> None:
    seen = [o for _, _, o in batches(cnn(), skewed(3))]
    sums, biases = row_sums(seen), head_biases(seen)
    for i, one in enumerate(seen):
        expected = one.update["5.weight"].double().sum(1).numpy()
        np.testing.assert_allclose(sums[i], expected, atol=1e-9)
        np.testing.assert_allclose(biases[i], one.update["5.bias"].numpy())


def test_unusable_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        batch_sizes([])
    with pytest.raises(ValueError, match="agree"):
        batch_sizes([observation(), observation(classes=5)])
    with pytest.raises(ValueError, match="at least 1"):
        batch_sizes([observation(size=0)])
    with pytest.raises(ValueError, match="local_steps must be at least 1"):
        batch_sizes([observation(steps=0)])
    with pytest.raises(ValueError, match="finite"):
        row_sums([Observation({"w": torch.full((3, 2), torch.nan)}, 4, 3)])


def test_several_local_steps_are_read_as_their_mean_gradient() -> None:
    [(_, _, one)] = batches(cnn(), skewed(1))
    several = replace(one, local_steps=5, learning_rate=0.1)
    np.testing.assert_allclose(row_sums([several]), row_sums([one]) / 0.5)
    np.testing.assert_allclose(head_biases([several]), head_biases([one]) / 0.5)


def test_answers_own_their_memory() -> None:
    counts = np.ones((2, 3), dtype=np.int64)
    answer = as_counts(counts)
    answer += 1
    assert (counts == 1).all()
