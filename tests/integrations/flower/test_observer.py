"""The curious server writes down what it is sent, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg, Strategy

from gradguard import Defense, ErrorFeedback, KeepTopK, UpdateGuard
from gradguard.integrations.flower import DecodingStrategy, GuardMod, Observer
from gradguard.updates.recording import read_recording
from gradguard.updates.recording_layout import RecordingError
from tests.integrations.flower.exchange import Federation, app, guarded, model, moved
from tests.integrations.flower.test_decoding_strategy import changed, truncated

TOP_K = Defense("top-k", transform=ErrorFeedback(KeepTopK(0.1)))


def client(node: int, round_: int) -> ClientAppCallable:
    return guarded(GuardMod(TOP_K, wire=True), app(lambda r: moved(r, 10 * round_ + node)))


def played(strategy: Strategy, rounds: int = 2) -> Federation:
    federation = Federation(strategy, clients=2)
    for round_ in range(rounds):
        federation.play(lambda node, round_=round_: client(node, round_))  # type: ignore[misc]
    return federation


def test_it_records_exactly_what_each_client_sent(tmp_path: Path) -> None:
    played(Observer(DecodingStrategy(FedAvg()), tmp_path))
    recording = read_recording(tmp_path)
    assert [round_.number for round_ in recording.rounds] == [1, 2]
    guards = {str(node): UpdateGuard(TOP_K.chain, model()) for node in (1, 2)}
    for index, round_ in enumerate(recording.rounds):
        reference = {name: round_.model()[name] for name in model().state_dict()}
        assert sorted(message.client for message in round_.messages) == ["1", "2"]
        for message in round_.messages:
            after = moved(dict(reference), 10 * index + int(message.client))
            expected = guards[message.client].protect(reference, after)
            found = message.update()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert message.num_examples == 8
            assert message.bytes_sent is not None
            assert 0 < message.bytes_sent < 300


def test_a_run_that_is_watched_leads_to_the_same_model(tmp_path: Path) -> None:
    watched = played(Observer(DecodingStrategy(FedAvg()), tmp_path)).model()
    alone = played(DecodingStrategy(FedAvg())).model()
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_inside_it_sees_what_a_strategy_is_handed(tmp_path: Path) -> None:
    played(DecodingStrategy(Observer(FedAvg(), tmp_path / "inside")))
    played(Observer(DecodingStrategy(FedAvg()), tmp_path / "outside"))
    inside, outside = (read_recording(tmp_path / name) for name in ("inside", "outside"))
    for first, second in zip(inside.rounds, outside.rounds, strict=True):
        found = {message.client: message.update() for message in first.messages}
        for message in second.messages:
            for name, change in message.update().items():
                assert torch.allclose(found[message.client][name], change, atol=1e-6)


def test_what_cannot_be_read_is_noted_and_costs_no_other(tmp_path: Path) -> None:
    federation = Federation(Observer(DecodingStrategy(FedAvg()), tmp_path), clients=3)

    def crash(message: Message, _: object) -> Message:
        return Message(Error(0, "out of memory"), reply_to=message)

    def answer(node: int) -> ClientAppCallable:
        return {1: changed(truncated, 1), 2: crash, 3: client(3, 0)}[node]

    federation.play(answer)
    (round_,) = read_recording(tmp_path).rounds
    assert [message.client for message in round_.messages] == ["3"]
    assert {client for client, _ in round_.refused} == {"1", "2"}


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RecordingError):
        Observer(FedAvg(), tmp_path)


def test_a_wrong_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a strategy"):
        Observer(FedAvg, tmp_path)  # type: ignore[arg-type]
