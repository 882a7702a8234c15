"""A client that trains locally sends the defended change of its model."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradguard import (
    DPSGD,
    AddGaussian,
    Client,
    Defense,
    FedAvgClient,
    Identity,
    KeepTopK,
    LocalTraining,
    Sign,
)

_DATA = torch.Generator().manual_seed(5)
INPUTS = torch.randn(8, 1, 6, 6, generator=_DATA)
LABELS = torch.randint(3, (8,), generator=_DATA)


def _model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def _vector(message: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in message.values()])


def _sent(training: LocalTraining, seed: int = 0) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _vector(FedAvgClient(_model(), Identity(), training)(INPUTS, LABELS))


def _plain_loop(training: LocalTraining, seed: int = 0) -> Tensor:
    """The slow and obvious reference: one optimizer, one loop, before minus after."""
    model = _model()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    rate = training.learning_rate
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=rate)
    if training.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=training.momentum)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, training.decay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(training.epochs):
            size = training.batch_size
            order = torch.arange(8) if size is None else torch.randperm(8)
            for rows in torch.split(order, size or 8):
                optimizer.zero_grad()
                cross_entropy(model(INPUTS[rows]), LABELS[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            scheduler.step()
    return before - nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(
    "training",
    [
        LocalTraining(epochs=1, learning_rate=0.1),
        LocalTraining(epochs=3, learning_rate=0.1, batch_size=3),
        LocalTraining(epochs=4, learning_rate=0.1, batch_size=3, momentum=0.9, decay=0.7),
        LocalTraining(epochs=2, learning_rate=0.01, batch_size=4, optimizer="adam", decay=0.5),
    ],
    ids=repr,
)
def test_the_local_training_is_torchs_own_optimizer_on_a_copy_of_the_model(
    training: LocalTraining,
) -> None:
    torch.testing.assert_close(_sent(training), _plain_loop(training), rtol=1e-4, atol=1e-6)


def test_one_step_of_plain_sgd_at_rate_1_sends_the_gradient_up_to_rounding() -> None:
    change = _sent(LocalTraining(epochs=1, learning_rate=1.0))
    gradient = _vector(Client(_model(), Identity())(INPUTS, LABELS))
    torch.testing.assert_close(change, gradient, rtol=1e-4, atol=1e-6)


def test_the_model_given_is_copied_and_never_changed() -> None:
    model = _model().eval()
    before = copy.deepcopy(model.state_dict())
    client = FedAvgClient(model, Sign(), LocalTraining(epochs=2, learning_rate=0.1))
    first, second = client(INPUTS, LABELS), client(INPUTS, LABELS)
    assert torch.equal(_vector(first), _vector(second))  # each starts from the same model
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_messages_are_those_of_a_guard_with_fresh_noise_in_each() -> None:
    training = LocalTraining(epochs=2, learning_rate=0.1)
    raw = FedAvgClient(_model(), Identity(), training).gradients(INPUTS, LABELS)
    for transform in (Sign(), KeepTopK(0.1)):
        client = FedAvgClient(_model(), transform, training)
        plain = Client(_model(), transform)
        assert torch.equal(_vector(client.release(raw)), _vector(plain.release(raw)))
    noisy = FedAvgClient(_model(), AddGaussian(1.0), training, seed=3)
    one, other = noisy(INPUTS, LABELS), noisy(INPUTS, LABELS)
    assert not torch.equal(_vector(one), _vector(other))
    again = FedAvgClient(_model(), AddGaussian(1.0), training, seed=3)(INPUTS, LABELS)
    assert torch.equal(_vector(one), _vector(again))


def test_frozen_parameters_and_buffers_are_not_sent() -> None:
    norm = nn.BatchNorm1d(36)
    norm.weight.requires_grad_(False)
    model = nn.Sequential(nn.Flatten(), norm, nn.Linear(36, 3))
    message = FedAvgClient(model, Sign(), LocalTraining(epochs=1, learning_rate=0.1))(
        INPUTS, LABELS
    )
    assert list(message) == ["1.bias", "2.weight", "2.bias"]
    assert norm.running_mean is not None
    assert not bool(norm.running_mean.any())


def test_a_client_trains_where_gradients_are_disabled() -> None:
    with torch.no_grad():
        client = FedAvgClient(_model(), Identity(), LocalTraining(epochs=1, learning_rate=0.1))
        assert bool(client(INPUTS, LABELS)["3.bias"].any())


@given(
    epochs=st.integers(1, 5),
    batch_size=st.none() | st.integers(1, 9),
    momentum=st.floats(0, 0.95),
    decay=st.floats(0.1, 1),
    examples=st.integers(1, 20),
)
def test_of_constant_gradients_the_change_is_steps_times_rate_times_gradient(
    epochs: int, batch_size: int | None, momentum: float, decay: float, examples: int
) -> None:
    training = LocalTraining(
        epochs=epochs, learning_rate=0.5, batch_size=batch_size, momentum=momentum, decay=decay
    )
    layer = nn.Linear(1, 1, bias=False).double()
    client = FedAvgClient(layer, Identity(), training, loss=lambda out, _: out.mean())
    inputs = torch.ones(examples, 1, dtype=torch.float64)
    (sent,) = client(inputs, torch.zeros(examples, dtype=torch.int64)).values()
    assert training.steps(examples) == epochs * math.ceil(examples / (batch_size or examples))
    rate = training.effective_rate(examples)
    assert rate is not None
    assert float(sent) == pytest.approx(training.steps(examples) * rate)
    if momentum == 0 and decay == 1:
        assert rate == pytest.approx(0.5)


def test_the_change_of_adam_has_no_rate() -> None:
    training = LocalTraining(epochs=2, learning_rate=0.1, optimizer="adam")
    assert training.effective_rate(8) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1 to 100,000"),
        ({"epochs": 1.0}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a number above 0"),
        ({"learning_rate": math.inf}, "learning_rate must be a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number above 0"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of sgd, adam"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"momentum": math.nan}, "momentum must be"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum is of sgd"),
        ({"decay": 0.0}, "decay must be above 0"),
        ({"decay": 1.5}, "decay must be .* at most 1"),
    ],
)
def test_training_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LocalTraining(**({"epochs": 1, "learning_rate": 0.1} | changes))


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        LocalTraining(epochs=1, learning_rate=0.1).steps(0)


def test_a_defence_plays_a_fedavg_client_but_not_one_with_dp_sgd() -> None:
    training = LocalTraining(epochs=2, learning_rate=0.1)
    defense = Defense("sign", transform=Sign())
    client = defense.client(_model(), training=training)
    assert isinstance(client, FedAvgClient)
    assert "LocalTraining" in client.kind
    private = Defense("dp", dp=DPSGD(1.0, 1.0), transform=[])
    with pytest.raises(ValueError, match="several local steps"):
        private.client(_model(), training=training)
