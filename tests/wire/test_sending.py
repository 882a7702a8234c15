"""What a guard knows of its message is used, and never trusted."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from gradguard import (
    Cast,
    ErrorFeedback,
    GradTransform,
    GuardedOptimizer,
    KeepRandomK,
    KeepTopK,
    LowRank,
    Only,
    Quantize,
    Sign,
    Withhold,
    chain,
    guard,
    wire,
)

Named = dict[str, Tensor]


def released(transform: GradTransform, rounds: int = 1) -> tuple[Named, GuardedOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 20))
    optimizer = guard(torch.optim.SGD(model.parameters()), transform, model=model)
    for _ in range(rounds):
        for p in model.parameters():
            p.grad = torch.randn(p.shape)
        message = optimizer.release()
    assert isinstance(message, dict)
    return message, optimizer


def codecs(data: bytes) -> list[str]:
    return [tensor.codec for tensor in wire.inspect(data).tensors]


def check_same(data: bytes, message: Mapping[str, Tensor]) -> None:
    decoded = wire.decode(data)
    assert list(decoded) == list(message)
    for name, part in message.items():
        assert torch.equal(decoded[name].view(torch.uint8), part.contiguous().view(torch.uint8))


@pytest.mark.parametrize(
    "transform",
    [
        KeepTopK(0.1),
        KeepRandomK(0.1),
        Quantize(4),
        Sign(),
        LowRank(2),
        ErrorFeedback(LowRank(1)),
        ErrorFeedback(KeepRandomK(0.1)),
        Withhold("0.*"),
        Only("0.*", KeepRandomK(0.1)),
        Only("1.*", LowRank(2)),
        chain(LowRank(2), KeepRandomK(0.1)),
        chain(KeepRandomK(0.2), LowRank(2)),
        chain(KeepRandomK(0.3), KeepRandomK(0.5), Quantize(4)),
        chain(Only("0.*", LowRank(2)), Only("1.*", LowRank(3))),
    ],
    ids=repr,
)
def test_a_released_message_comes_back_to_the_bit(transform: GradTransform) -> None:
    for rounds in (1, 3):
        message, optimizer = released(transform, rounds)
        check_same(wire.encode_release(message, optimizer), message)
        check_same(wire.encode_release(message, optimizer, portable=True), message)


@pytest.mark.parametrize(
    "transform",
    [
        KeepRandomK(0.1),
        ErrorFeedback(KeepRandomK(0.1)),
        chain(KeepRandomK(0.1), Sign()),
        chain(KeepRandomK(0.4), Cast("float16")),
    ],
    ids=repr,
)
def test_coordinates_from_a_seed_are_not_sent(transform: GradTransform) -> None:
    for rounds in (1, 3):
        message, optimizer = released(transform, rounds)
        data = wire.encode_release(message, optimizer)
        assert {codec.split()[0] for codec in codecs(data)} == {"seed"}
        assert len(data) < 0.95 * len(wire.encode(message))


def test_a_coordinate_that_was_drawn_and_is_zero_is_not_told() -> None:
    """Which words occur in no example is for the message to tell, and no more than it does."""
    torch.manual_seed(0)
    model = nn.Embedding(200, 8)
    optimizer = guard(torch.optim.SGD(model.parameters()), KeepRandomK(0.3), model=model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([3, 77, 150])).square().sum().backward()
        message = optimizer.release()
        assert isinstance(message, dict)
        assert wire.encode_release(message, optimizer) == wire.encode(message)


def test_of_several_masks_none_makes_a_message_longer() -> None:
    for transform in (chain(KeepRandomK(0.3), KeepRandomK(0.5)), Only("0.*", KeepRandomK(0.1))):
        message, optimizer = released(transform, 2)
        assert len(wire.encode_release(message, optimizer)) <= len(wire.encode(message))


def test_factors_are_sent_in_place_of_their_product() -> None:
    for transform in (LowRank(2), ErrorFeedback(LowRank(2))):
        message, optimizer = released(transform, 3)
        data = wire.encode_release(message, optimizer)
        assert codecs(data)[::2] == ["factors", "factors"]
        assert len(data) < 0.3 * len(wire.encode(message))


def test_factors_of_several_transforms_each_go_to_their_own_parameters() -> None:
    message, optimizer = released(chain(Only("0.*", LowRank(2)), Only("1.*", LowRank(3))))
    assert codecs(wire.encode_release(message, optimizer))[::2] == ["factors", "factors"]
    message, optimizer = released(Only("1.*", LowRank(2)))
    assert codecs(wire.encode_release(message, optimizer))[::2] == ["raw", "factors"]


def test_another_message_is_encoded_as_well_without_what_the_guard_knows() -> None:
    for transform in (KeepRandomK(0.1), LowRank(2)):
        _, optimizer = released(transform)
        later, _ = released(transform, 2)
        part = {"1.weight": later["1.weight"], "other": torch.ones(3)}
        for other in (later, part, {}):
            check_same(wire.encode_release(other, optimizer), other)
