"""The model that the server gets back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradguard.attacks.received import received_model, tells_the_received_model
from gradguard.attacks.threat import Observation
from tests.attacks.local_training import local_change
from tests.attacks.models import cnn, data


def test_received_model_is_the_one_that_was_trained() -> None:
    model = cnn().double()
    inputs, labels = data(8)
    batches = [(inputs.double(), labels)] * 5
    seen = local_change(model, batches, 0.1)
    end = copy.deepcopy(model)
    optimizer = torch.optim.SGD(end.parameters(), lr=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(end(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = received_model(model, seen)
    for name, tensor in end.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), tensor)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_parameters_that_were_not_sent_stay() -> None:
    model = cnn()
    found = received_model(model, Observation({"5.bias": torch.ones(4).half()}, 8, 4))
    assert torch.equal(found.get_parameter("5.weight"), model.get_parameter("5.weight"))
    assert torch.equal(found.get_parameter("5.bias"), model.get_parameter("5.bias") - 1)


def test_strange_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['strange'\]"):
        received_model(cnn(), Observation({"strange": torch.ones(4)}, 8, 4))


@pytest.mark.parametrize(
    ("steps", "rate", "told"), [(1, None, False), (1, 0.1, False), (3, None, False), (3, 0.1, True)]
)
def test_a_change_over_several_steps_tells_the_end(
    steps: int, rate: float | None, told: bool
) -> None:
    assert tells_the_received_model(Observation({}, 8, 4, steps, rate)) is told
