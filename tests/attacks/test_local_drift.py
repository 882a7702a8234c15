"""The simulated drift of a client's logits against local training itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from gradguard.attacks.local_drift import centred, drift_gain, simulate_drift, step_weights
from gradguard.attacks.rounding import Floats
from tests.attacks.local_training import local_change
from tests.attacks.models import CLASSES, FlatModel, data, gradient


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_step_weights_are_how_often_momentum_adds_each_gradient(momentum: float) -> None:
    """By torch's own optimizer, fed one unit gradient after another."""
    weight = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum)
    for step in range(5):
        weight.grad = torch.eye(5, dtype=torch.float64)[step]
        optimizer.step()
    np.testing.assert_allclose(step_weights(5, momentum), -weight.detach().numpy())


def test_gain_of_a_single_example_is_one_plus_its_squared_features() -> None:
    model = FlatModel().double()
    inputs, labels = data(1)
    update = gradient(model, inputs.double(), labels)
    gain = drift_gain(update["head.weight"].numpy(), update["head.bias"].numpy())
    assert gain == pytest.approx(1 + float((inputs.double() ** 2).sum()))
    assert drift_gain(np.ones((3, 2)), np.zeros(3)) == 1.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_simulation_of_a_flat_model_on_one_input_is_its_local_training(momentum: float) -> None:
    """All inputs are the same, so that the mean example is every example."""
    model = FlatModel().double()
    inputs = data(1)[0].double().expand(8, -1, -1, -1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    rate, steps = 0.02, 6
    seen = local_change(model, [(inputs, labels)] * steps, rate, momentum)
    start = model(inputs[:1]).detach().numpy()
    change = {n: -t for n, t in seen.update.items()}
    moved = nn.functional.linear(inputs[:1].flatten(1), change["head.weight"], change["head.bias"])

    def confidence(drift: Floats) -> Floats:
        return np.tile(softmax(start + drift, axis=1), (CLASSES, 1))

    shares = np.bincount(labels.numpy(), minlength=CLASSES) / 8
    weight, bias = (seen.update[f"head.{part}"].numpy() for part in ("weight", "bias"))
    average, drift = simulate_drift(
        confidence, shares, rate * drift_gain(weight, bias), steps, momentum
    )
    np.testing.assert_allclose(drift, moved[0].numpy(), atol=1e-10)
    repeated = rate * step_weights(steps, momentum).sum()
    np.testing.assert_allclose(bias / repeated, average[0] - shares, atol=1e-10)


def test_without_speed_nothing_drifts() -> None:
    start = np.full((3, 3), 1 / 3)
    average, drift = simulate_drift(lambda _: start, np.array([1.0, 0, 0]), 0.0, 4, 0.5)
    np.testing.assert_allclose(average, start)
    assert (drift == 0).all()


def test_centred_logits_give_the_probabilities_back_and_survive_zeros() -> None:
    probabilities = softmax(np.random.default_rng(0).normal(size=(5, 4)), axis=1)
    np.testing.assert_allclose(softmax(centred(probabilities), axis=1), probabilities)
    assert np.isfinite(centred(np.array([[1.0, 0.0]]))).all()
