"""A message held against the model it is said to come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradguard.evaluation import UnusableInputError
from gradguard.evaluation.decisions.matching import match
from tests.evaluation.decisions.messages import message, net


def test_a_message_comes_back_in_the_models_order_and_bitwise() -> None:
    sent = message(net())
    found = match(dict(reversed(sent.items())), net())
    assert list(found.update) == list(sent)
    assert all(torch.equal(found.update[name], part) for name, part in sent.items())
    assert (found.withheld, found.unread, found.prefix) == ((), (), "")


@pytest.mark.parametrize("prefix", ["module.", "_module.", "_orig_mod."])
def test_a_prefix_of_every_name_is_taken_off_and_told(prefix: str) -> None:
    sent = message(net())
    found = match({prefix + name: part for name, part in sent.items()}, net())
    assert found.prefix == prefix
    assert list(found.update) == list(sent)


def test_missing_parameters_are_zeros_and_told() -> None:
    sent = message(net())
    del sent["1.weight"]
    found = match(sent, net())
    assert found.withheld == ("1.weight",)
    assert not found.update["1.weight"].any()


def test_an_unexpected_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnusableInputError, match=r"'1.wieght'; did you mean '1.weight'"):
        match(message(net()) | {"1.wieght": torch.zeros(24, 64)}, net())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    sent = message(net())
    sent["3.bias"][2] = bad
    with pytest.raises(UnusableInputError, match=r"'3.bias' holds NaN or infinity"):
        match(sent, net())


def test_a_value_too_large_for_the_models_type_is_refused() -> None:
    sent = {name: part.double() for name, part in message(net()).items()}
    sent["3.bias"][0] = 1e300
    with pytest.raises(UnusableInputError, match="NaN or infinity"):
        match(sent, net())


def test_another_shape_is_refused_before_it_is_expanded() -> None:
    sent = message(net()) | {"3.bias": torch.zeros(1).expand(10**15)}
    with pytest.raises(UnusableInputError, match=r"shape \(1000000000000000,\)"):
        match(sent, net())


def test_whole_numbers_are_refused() -> None:
    sent = message(net()) | {"3.bias": torch.zeros(10, dtype=torch.int8)}
    with pytest.raises(UnusableInputError, match="floating-point"):
        match(sent, net())


def test_buffers_and_frozen_parameters_are_told_and_not_read() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    model[0].bias.requires_grad_(False)
    found = match({name: part.clone() for name, part in model.state_dict().items()}, model)
    assert set(found.unread) == {
        "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip
    assert list(found.update) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]
    with pytest.raises(UnusableInputError, match="none of the 1 tensors"):
        match({"1.running_mean": torch.zeros(6)}, model)
