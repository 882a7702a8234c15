"""The example with two processes refuses what a hostile sender would send."""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gradguard import wire

EXAMPLE = Path(__file__).parent.parent / "examples" / "socket_training.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("socket_training", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


def test_what_is_sent_is_received(example: ModuleType, ends: Ends) -> None:
    example.send(ends[1], b"some bytes")
    assert example.receive(ends[0]) == b"some bytes"


def test_a_hostile_length_is_refused_before_anything_is_read(
    example: ModuleType, ends: Ends
) -> None:
    for size in (example.MOST_BYTES + 1, 2**63, 2**64 - 1):
        ends[1].sendall(example.LENGTH.pack(size))
        with pytest.raises(wire.WireError, match=f"the sender announces {size}"):
            example.receive(ends[0])


def test_a_sender_that_stops_is_an_error_and_no_short_message(
    example: ModuleType, ends: Ends
) -> None:
    ends[1].sendall(example.LENGTH.pack(100) + b"not a hundred")
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="expected 100 bytes, the sender stopped after 13"):
        example.receive(ends[0])


def test_a_sender_that_drips_is_not_waited_for_longer_than_one_that_is_silent(
    example: ModuleType, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout of every single read would start again with every byte."""
    monkeypatch.setattr(example, "SECONDS", 0.5)
    over = threading.Event()

    def drip() -> None:
        ends[1].sendall(example.LENGTH.pack(2**20))
        while not over.wait(0.05):
            ends[1].sendall(b"x")

    sender = threading.Thread(target=drip)
    sender.start()
    try:
        with pytest.raises(TimeoutError):
            example.receive(ends[0])
    finally:
        over.set()
        sender.join()


def test_a_first_message_that_is_none_is_refused_with_its_reason(example: ModuleType) -> None:
    images, labels = torch.rand(5, 64), torch.zeros(5, dtype=torch.int64)
    state = {name: value.clone() for name, value in example.new_model().state_dict().items()}
    fitting = {"test.images": images, "test.labels": labels, **state}
    for hostile, reason in (
        ({}, "for each parameter"),
        (state, "test images"),
        ({"test.images": images, **state}, "label"),
        (fitting | {"test.images": images.double()}, "test images"),
        (fitting | {"test.images": images[:, :3]}, "test images"),
        (fitting | {"test.labels": labels[:2]}, "label"),
        (fitting | {"test.labels": labels.float()}, "label"),
        (fitting | {"0.bias": torch.zeros(3)}, "for each parameter"),
        (fitting | {"0.bias": state["0.bias"] * float("inf")}, "finite"),
        (fitting | {"more": torch.zeros(3)}, "for each parameter"),
    ):
        with pytest.raises(wire.WireError, match=reason):
            example.begin(hostile, example.new_model())
    model = example.new_model()
    assert torch.equal(example.begin(fitting, model)[0], images)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_message_that_is_no_finite_gradient_of_the_model_is_not_applied(
    example: ModuleType,
) -> None:
    model = example.new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    fitting = {name: torch.ones_like(value) for name, value in before.items()}
    for hostile in (
        {},
        fitting | {"more": torch.zeros(1)},
        fitting | {"0.bias": torch.ones(1)},
        fitting | {"0.bias": fitting["0.bias"].double()},
        fitting | {"0.bias": fitting["0.bias"] * float("nan")},
    ):
        with pytest.raises(wire.WireError):
            example.apply(hostile, model, optimizer)
    assert all(bool((before[name] == value).all()) for name, value in model.state_dict().items())
    example.apply(fitting, model, optimizer)
    assert all(
        bool((before[name] - 1 == value).all()) for name, value in model.state_dict().items()
    )
