"""Digests of models and tensors, and the forward passes that are remembered by them."""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks.fingerprint import digest_of, fingerprint
from gradguard.attacks.forward import head_pass
from tests.attacks.models import cnn


class Counting(nn.Module):
    """Says how often it was called, and with how many inputs."""

    calls: ClassVar[list[int]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.append(len(inputs))
        return inputs


def test_a_digest_tells_apart_names_shapes_types_and_values() -> None:
    zeros = torch.zeros(2, 3)
    others: list[dict[str, Tensor | None]] = [
        {"b": zeros},
        {"a": zeros.T},
        {"a": zeros.double()},
        {"a": zeros + 1},
        {"a": None},
        {"a": zeros, "b": zeros},
    ]
    assert digest_of({"a": zeros}) == digest_of({"a": torch.zeros(2, 3)})
    assert len({digest_of({"a": zeros}), *(digest_of(other) for other in others)}) == 7


def test_empty_and_expanded_tensors_have_a_digest() -> None:
    one = torch.tensor([3])
    assert digest_of({"a": one.expand(1)[:1]}) == digest_of({"a": one})
    assert digest_of({"a": torch.zeros(1).expand(4)}) == digest_of({"a": torch.zeros(4)})
    empty = torch.from_numpy(np.arange(5)[:0] - 1)
    assert digest_of({"a": empty}) == digest_of({"a": torch.zeros(0, dtype=torch.int64)})


def test_a_fingerprint_sees_a_parameter_and_a_buffer_change_in_place() -> None:
    linear = nn.Linear(3, 2)
    model = nn.Sequential(linear, nn.BatchNorm1d(2))
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    model(torch.randn(4, 3))  # moves the running averages
    moved = fingerprint(model)
    with torch.no_grad():
        linear.weight[0, 0] += 1e-6
    assert len({before, moved, fingerprint(model)}) == 3


def test_a_forward_pass_is_computed_once_for_equal_models_and_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Counting(), nn.Linear(5, 4))
    inputs = torch.randn(300, 5)
    Counting.calls.clear()
    first = head_pass(model, inputs, num_classes=4)
    assert sum(calls for calls in Counting.calls if calls > 2) == 300
    Counting.calls.clear()
    again = head_pass(copy.deepcopy(model), inputs.clone(), num_classes=4)
    assert again is first
    assert sum(Counting.calls) == 2  # the probe


def test_a_remembered_pass_is_not_given_for_anything_else() -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(6, 4), torch.randn(9, 6)
    model = nn.Sequential(nn.Dropout(0.5), nn.Tanh(), linear)
    first = head_pass(model, inputs, num_classes=4)
    other = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), linear)  # the same parameters
    changed = inputs.clone()
    changed[8] += 1  # all of it: dropout hides some
    for found in (
        head_pass(other, inputs, num_classes=4),
        head_pass(model, changed, num_classes=4),
        head_pass(model, inputs, num_classes=4, seed=1),
    ):
        assert not np.array_equal(found.feature_sums, first.feature_sums)
    with torch.no_grad():
        linear.weight += torch.rand(4, 6)
    moved = head_pass(model, inputs, num_classes=4)
    assert not np.array_equal(moved.probabilities, first.probabilities)


def test_a_remembered_pass_cannot_be_written_to() -> None:
    passed = head_pass(cnn(), torch.rand(3, 1, 8, 8), num_classes=4)
    assert not passed.probabilities.flags.writeable
    assert not passed.feature_sums.flags.writeable
