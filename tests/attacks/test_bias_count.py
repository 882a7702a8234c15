"""Counts from the output layer's bias gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard.attacks import BiasCount, NotApplicableError, Observation
from gradguard.attacks.bias_count import FittedBiasCount
from tests.attacks.models import batches, cnn, data, knowledge, overlap, skewed


def test_mean_confidence_is_that_of_the_auxiliary_data() -> None:
    model = cnn()
    fitted = BiasCount().fit(knowledge(model))
    expected = model(data(80, seed=7)[0]).softmax(1).mean(0)
    np.testing.assert_allclose(fitted.confidence, expected.detach().numpy(), atol=1e-6)


def test_untrained_models_are_read_almost_perfectly() -> None:
    counts = skewed(40)
    seen = [o for _, _, o in batches(cnn(), counts)]
    assert overlap(BiasCount().fit(knowledge(cnn())).infer(seen), counts) > 0.97


def test_head_without_bias_is_not_applicable() -> None:
    model = cnn(bias=False)
    with pytest.raises(NotApplicableError, match="no bias"):
        BiasCount().fit(knowledge(model))
    with pytest.raises(NotApplicableError, match="no bias"):
        FittedBiasCount((0.25,) * 4).infer([Observation({"w": torch.ones(4, 2)}, 4, 4)])


def test_sum_of_local_steps_is_not_applicable() -> None:
    seen = Observation({"b.weight": torch.ones(4, 2), "b.bias": torch.ones(4)}, 4, 4, local_steps=2)
    with pytest.raises(NotApplicableError, match="single-step"):
        FittedBiasCount((0.25,) * 4).infer([seen])


def test_other_number_of_classes_is_refused() -> None:
    seen = Observation({"b.weight": torch.ones(3, 2), "b.bias": torch.ones(3)}, 4, 3)
    with pytest.raises(ValueError, match="fitted for 4"):
        FittedBiasCount((0.25,) * 4).infer([seen])
