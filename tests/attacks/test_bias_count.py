"""Counts from the output layer's bias gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard.attacks import (
    Attack,
    BiasCount,
    LLGPlus,
    LLGStar,
    NotApplicableError,
    Observation,
)
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


def test_other_number_of_classes_is_refused() -> None:
    seen = Observation({"b.weight": torch.ones(3, 2), "b.bias": torch.ones(3)}, 4, 3)
    with pytest.raises(ValueError, match="fitted for 4"):
        FittedBiasCount((0.25,) * 4).infer([seen])


class _Scaled(torch.nn.Module):
    """A model whose output is not that of its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = cnn()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = 10 * self.inner(inputs)
        return out


@pytest.mark.parametrize("attack", [BiasCount(), LLGPlus(), LLGStar("ones")], ids=repr)
def test_model_whose_output_is_not_that_of_its_head_is_not_applicable(attack: Attack) -> None:
    """It was calibrated on a layer that does not make the confidences, and scored near blind."""
    with pytest.raises(NotApplicableError, match="name it with head"):
        attack.fit(knowledge(_Scaled()))


def test_log_softmax_on_top_of_the_head_changes_nothing() -> None:
    model = torch.nn.Sequential(cnn(), torch.nn.LogSoftmax(dim=1))
    fitted, bare = (BiasCount().fit(knowledge(m)) for m in (model, cnn()))
    np.testing.assert_allclose(fitted.confidence, bare.confidence, atol=1e-6)
