"""DP-SGD on a Flower client: epsilon goes on where the last round left it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard import DPSGD, Defense, ErrorFeedback, KeepTopK
from gradguard.dp import PrivacyBudgetExhausted, PrivacyLedger
from gradguard.integrations.flower import GuardMod, dp_sgd
from gradguard.integrations.flower.arrays import record_of
from gradguard.integrations.flower.memory import LEDGER
from tests.integrations.flower.exchange import (
    Federation,
    app,
    context,
    guarded,
    instruction,
    model,
    moved,
)

PRIVATE = Defense(
    "dp, top-k", transform=ErrorFeedback(KeepTopK(0.1)), dp=DPSGD(1.0, 1.0, delta=1e-3)
)


def data() -> DataLoader[Any]:
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(60, 6), torch.randint(3, (60,))), batch_size=12)


def trains(defense: Defense, **options: Any) -> ClientAppCallable:
    """A train function such as a user writes."""

    def train(message: Message, context: Context) -> Message:
        net = model()
        net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with dp_sgd(context, defense, net, optimizer, data(), **options) as training:
            private, private_optimizer, loader = training
            for inputs, labels in loader:
                private_optimizer.zero_grad()
                nn.functional.cross_entropy(private(inputs), labels).backward()  # type: ignore[no-untyped-call]
                private_optimizer.step()
        content = RecordDict(
            {
                "arrays": record_of(net.state_dict()),
                "metrics": MetricRecord({"num-examples": 60}),
            }
        )
        return Message(content, reply_to=message)

    return train


def composed(rounds: int) -> float:
    """Epsilon of so many rounds of five steps, from a ledger of their own."""
    ledger = PrivacyLedger()
    for _ in range(5 * rounds):
        ledger.charge(1.0, 0.2)
    return ledger.epsilon(1e-3)


def test_epsilon_is_of_all_rounds_so_far() -> None:
    federation = Federation(clients=2)
    call = guarded(GuardMod(PRIVATE, model=model, wire=True), trains(PRIVATE))
    for round_ in (1, 2, 3):
        _, metrics = federation.play(lambda _: call)
        assert metrics is not None
        assert metrics["gradguard.epsilon"] == pytest.approx(composed(round_))
        assert metrics["gradguard.releases"] == 5 * round_
        assert metrics["gradguard.delta"] == 1e-3
    tag = federation.replies[0].content.config_records["gradguard"]
    assert (tag["unit"], tag["accountant"]) == ("example", "prv")


def test_an_app_that_trains_without_it_sends_nothing() -> None:
    reply = guarded(GuardMod(PRIVATE, model=model), app(moved))(
        instruction(model().state_dict()), context()
    )
    assert "no release was booked in this round" in str(reply.error.reason)


def test_an_app_that_trains_with_less_noise_sends_nothing() -> None:
    weaker = Defense("weaker", transform=[], dp=DPSGD(0.5, 1.0, delta=1e-3))
    own = context()
    reply = guarded(GuardMod(PRIVATE, model=model), trains(weaker))(
        instruction(model().state_dict()), own
    )
    assert "promises a noise multiplier of 1 and training used 0.5" in str(reply.error.reason)
    assert LEDGER in own.state  # its releases were made all the same


def test_a_round_beyond_the_budget_is_not_sent() -> None:
    own = context()
    call = guarded(GuardMod(PRIVATE, model=model, max_epsilon=composed(1) + 1e-3), trains(PRIVATE))
    assert call(instruction(model().state_dict()), own).has_content()
    reply = call(instruction(model().state_dict()), own)
    assert "above max_epsilon" in str(reply.error.reason)


def test_training_stops_before_the_budget_is_exceeded_and_what_was_made_is_booked() -> None:
    own = context()
    call = guarded(GuardMod(PRIVATE, model=model), trains(PRIVATE, max_epsilon=composed(1) + 1e-3))
    assert call(instruction(model().state_dict()), own).has_content()
    with pytest.raises(PrivacyBudgetExhausted):
        call(instruction(model().state_dict()), own)
    kept = PrivacyLedger.from_json(str(own.state.config_records[LEDGER]["ledger"]))
    assert kept.releases == 5


def test_a_ledger_that_is_none_is_refused() -> None:
    own = context()
    own.state[LEDGER] = ConfigRecord({"ledger": "{}"})
    reply = guarded(GuardMod(PRIVATE, model=model), trains(PRIVATE))(
        instruction(model().state_dict()), own
    )
    assert "privacy ledger" in str(reply.error.reason)


def test_a_defence_without_dp_is_refused() -> None:
    plain = Defense("plain", transform=[])
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with (
        pytest.raises(ValueError, match="has no dp"),
        dp_sgd(context(), plain, net, optimizer, data()),
    ):
        pass


def test_blocks_within_each_other_are_refused_and_one_after_the_other_is_booked_whole() -> None:
    own, parts = context(), []
    for _ in range(2):
        net = model()
        parts.append((net, torch.optim.SGD(net.parameters(), lr=0.1), data()))
    with (
        dp_sgd(own, PRIVATE, *parts[0]),
        pytest.raises(ValueError, match="another dp_sgd block is open"),
        dp_sgd(own, PRIVATE, *parts[1]),
    ):
        pass
    for _ in range(2):
        trains(PRIVATE)(instruction(model().state_dict()), own)
    assert PrivacyLedger.from_json(str(own.state.config_records[LEDGER]["ledger"])).releases == 10


def test_a_block_that_raises_is_closed_and_booked() -> None:
    own, net = context(), model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), dp_sgd(own, PRIVATE, net, optimizer, data()):
        raise ZeroDivisionError
    assert LEDGER in own.state
    trains(PRIVATE)(instruction(model().state_dict()), own)


def test_what_is_no_parameter_does_not_leave_beside_private_ones() -> None:
    """A running mean of the client's data in a buffer, which no noise protects."""
    unnamed = guarded(GuardMod(PRIVATE), trains(PRIVATE))
    reply = unnamed(instruction(model().state_dict()), context())
    assert "GuardMod(..., model=...)" in str(reply.error.reason)
    sends = guarded(GuardMod(PRIVATE, model=model, buffers="send"), trains(PRIVATE))
    reply = sends(instruction(model().state_dict()), context())
    assert "buffers are withheld" in str(reply.error.reason)


def test_a_ledger_that_was_replaced_is_noticed() -> None:
    own = context()
    call = guarded(GuardMod(PRIVATE, model=model), trains(PRIVATE))
    assert call(instruction(model().state_dict()), own).has_content()

    def forgets(message: Message, context: Context) -> Message:
        ledger = PrivacyLedger()
        for _ in range(20):
            ledger.charge(8.0, 0.2)
        reply = trains(PRIVATE)(message, context)
        context.state[LEDGER] = ConfigRecord({"ledger": ledger.to_json()})
        return reply

    reply = guarded(GuardMod(PRIVATE, model=model), forgets)(instruction(model().state_dict()), own)
    assert "lacks releases" in str(reply.error.reason)
