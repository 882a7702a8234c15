"""A mod of a Flower client: what leaves is defended, or nothing leaves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from gradguard import (
    AddGaussian,
    ClipByGlobalNorm,
    Defense,
    ErrorFeedback,
    GradTransform,
    KeepTopK,
    Quantize,
    UpdateGuard,
    apply_update,
    chain,
)
from gradguard.dp import ClientDP
from gradguard.integrations.flower import GuardMod
from gradguard.integrations.flower.arrays import record_of
from gradguard.integrations.flower.guard_mod import REFUSED, STYPE
from gradguard.integrations.flower.handshake import RECORD, new_ticket
from gradguard.integrations.flower.memory import ARRAYS, FACTS
from gradguard.integrations.update_settings import seed_of
from gradguard.wire import decode
from tests.integrations.flower.exchange import (
    Federation,
    app,
    context,
    guarded,
    instruction,
    model,
    moved,
    reasons,
    sent_model,
)

TOP_K = Defense("top-k", transform=ErrorFeedback(KeepTopK(0.1)))


def asked(entries: dict[str, Tensor] | None = None, *, accepted: int = 0) -> Message:
    """A message of a server that decodes."""
    message = instruction(model().state_dict() if entries is None else entries)
    message.content[RECORD] = new_ticket(accepted).to_record()
    return message


def reason(reply: Message) -> str:
    assert reply.has_error(), "the reply left"
    assert reply.error.code == REFUSED
    return str(reply.error.reason)


def test_a_dense_reply_is_the_model_received_plus_the_defended_change() -> None:
    received = model().state_dict()
    after = moved(dict(received))
    reply = guarded(GuardMod(TOP_K), app(lambda _: after))(instruction(received), context())
    update = UpdateGuard(TOP_K.chain, model()).protect(received, after)
    expected = apply_update(received, update)
    assert sent_model(reply).keys() == expected.keys()
    assert all(torch.equal(sent_model(reply)[name], expected[name]) for name in expected)
    assert list(reply.content.array_records) == ["arrays"]


@pytest.mark.parametrize(
    "transform",
    [
        ErrorFeedback(KeepTopK(0.05)),
        chain(ClipByGlobalNorm(0.1), AddGaussian(0.01)),
        Quantize(4),
    ],
)
def test_the_update_is_bitwise_that_of_a_plain_loop_over_rounds(transform: GradTransform) -> None:
    defense = Defense("d", transform=transform)
    mod = GuardMod(defense, wire=True, simulation_seed=3)
    here, there = UpdateGuard(defense.chain, model()), context(7)
    here.reset(seed_of(3, "7"))
    received = model().state_dict()
    for round_ in range(3):
        after = moved(dict(received), round_)
        reply = guarded(mod, app(lambda _, after=after: after))(asked(received), there)  # type: ignore[misc]
        (array,) = reply.content.array_records["arrays"].values()
        assert array.stype == STYPE
        found, expected = decode(array.data), here.protect(received, after)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_memory_is_the_clients_and_survives_a_mod_that_is_made_anew() -> None:
    received = model().state_dict()
    contexts = {1: context(1), 2: context(2)}
    guards = {node: UpdateGuard(TOP_K.chain, model()) for node in contexts}
    for round_ in range(3):
        for node in (1, 2):
            after = moved(dict(received), 10 * round_ + node)
            mod = GuardMod(TOP_K)  # as in a new process
            reply = guarded(mod, app(lambda _, after=after: after))(  # type: ignore[misc]
                instruction(received), contexts[node]
            )
            expected = apply_update(received, guards[node].protect(received, after))
            assert all(torch.equal(sent_model(reply)[name], expected[name]) for name in expected)


def test_a_mod_that_serves_two_clients_by_turns_mixes_nothing() -> None:
    """As in a simulation, where one actor plays many clients."""
    received, shared = model().state_dict(), GuardMod(TOP_K)
    contexts = {1: context(1), 2: context(2)}
    sent: dict[int, list[dict[str, Tensor]]] = {1: [], 2: []}
    for _ in range(2):
        for node in (1, 2):
            after = moved(dict(received), node)
            call = guarded(shared, app(lambda _, after=after: after))  # type: ignore[misc]
            sent[node].append(sent_model(call(instruction(received), contexts[node])))
    alone, own = GuardMod(TOP_K), context(1)
    for expected in sent[1]:
        call = guarded(alone, app(lambda _: moved(dict(received), 1)))
        found = sent_model(call(instruction(received), own))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_not_sent_and_the_memory_stays(bad: float) -> None:
    received, own, mod = model().state_dict(), context(), GuardMod(TOP_K)
    guarded(mod, app(lambda r: moved(r)))(instruction(received), own)
    kept = copy.deepcopy((own.state[ARRAYS], own.state[FACTS]))
    broken = moved(dict(received))
    broken["0.bias"][1] = bad
    reply = guarded(mod, app(lambda _: broken))(instruction(received), own)
    assert "'0.bias' contains NaN or infinity after training" in reason(reply)
    assert not reply.has_content()
    assert (own.state[ARRAYS], own.state[FACTS]) == kept


def test_an_error_of_the_app_is_passed_on() -> None:
    failed = lambda message, _: Message(Error(0, "no data"), reply_to=message)  # noqa: E731
    reply = guarded(GuardMod(TOP_K), failed)(instruction(model().state_dict()), context())
    assert reply.error.reason == "no data"


def test_an_app_that_raises_sends_nothing() -> None:
    def crash(message: Message, own: Context) -> Message:
        raise ZeroDivisionError

    own = context()
    with pytest.raises(ZeroDivisionError):
        guarded(GuardMod(TOP_K), crash)(instruction(model().state_dict()), own)
    assert not own.state


def test_the_app_may_train_in_the_memory_that_it_was_given() -> None:
    def in_place(message: Message, own: Context) -> Message:
        (record,) = message.content.array_records.values()
        trained = moved(dict(record.to_torch_state_dict()))
        message.content["arrays"] = record_of(trained)
        content = RecordDict(
            {"arrays": record_of(trained), "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content, reply_to=message)

    received = model().state_dict()
    found = sent_model(guarded(GuardMod(TOP_K), in_place)(instruction(received), context()))
    expected = sent_model(guarded(GuardMod(TOP_K), app(moved))(instruction(received), context()))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["evaluate", "query", "evaluate.mine"])
def test_arrays_in_other_replies_are_refused_and_metrics_pass(kind: str) -> None:
    received = model().state_dict()
    reply = guarded(GuardMod(TOP_K), app(moved))(instruction(received, kind=kind), context())
    assert "only those of replies to 'train'" in reason(reply)

    def metrics_only(message: Message, _: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=message)

    passed = guarded(GuardMod(TOP_K), metrics_only)(instruction(received, kind=kind), context())
    assert passed.content.metric_records["metrics"]["loss"] == 1.0


def test_a_train_message_with_an_action_of_its_own_is_defended() -> None:
    received = model().state_dict()
    message = instruction(received, kind="train.fine_tune")
    reply = guarded(GuardMod(TOP_K), app(moved))(message, context())
    changed = sum(int((sent_model(reply)[n] != received[n]).sum()) for n in received)
    assert changed == 20  # a tenth of 203


def test_what_the_app_adds_to_the_metrics_stays_and_ours_are_added() -> None:
    received = model().state_dict()
    call = guarded(GuardMod(TOP_K, wire=True), app(moved, loss=0.5))
    metrics = call(asked(received), context()).content.metric_records["metrics"]
    assert metrics["loss"] == 0.5
    assert metrics["num-examples"] == 8
    assert metrics["gradguard.bytes.dense"] == 4 * 203
    assert 0 < int(str(metrics["gradguard.bytes.sent"])) < 300
    assert "gradguard.epsilon" not in metrics


def test_bytes_sent_are_those_of_the_record_that_leaves() -> None:
    reply = guarded(GuardMod(TOP_K, wire=True), app(moved))(asked(), context())
    record = reply.content.array_records["arrays"]
    assert reply.content.metric_records["metrics"]["gradguard.bytes.sent"] == record.count_bytes()
    assert len(next(iter(record.values())).data) < record.count_bytes() < 300


def test_replies_that_hold_no_or_several_models_are_refused() -> None:
    for extra in ({}, {"a": ArrayRecord(), "b": ArrayRecord()}):

        def odd(message: Message, _: Context, extra: Any = extra) -> Message:
            content = RecordDict({**extra, "metrics": MetricRecord({"num-examples": 1})})
            return Message(content, reply_to=message)

        reply = guarded(GuardMod(TOP_K), odd)(instruction(model().state_dict()), context())
        assert f"{len(extra)} ArrayRecords" in reason(reply)


def test_two_mods_on_one_app_are_refused() -> None:
    twice = guarded(GuardMod(TOP_K), guarded(GuardMod(TOP_K), app(moved)))
    assert "defended already" in reason(twice(instruction(model().state_dict()), context()))


def test_encoding_for_a_server_that_cannot_decode_is_refused_before_training() -> None:
    def never(received: dict[str, Tensor]) -> dict[str, Tensor]:
        raise AssertionError("trained")

    reply = guarded(GuardMod(TOP_K, wire=True), app(never))(
        instruction(model().state_dict()), context()
    )
    assert "DecodingStrategy" in reason(reply)


@pytest.mark.parametrize("where", ["message", "state"])
def test_encoding_under_secure_aggregation_is_refused(where: str) -> None:
    message, own = asked(), context()
    if where == "message":
        message.content["secaggplus_configs"] = ConfigRecord({"stage": "collect"})
    else:
        own.state["secaggplus_state"] = ConfigRecord()
    reply = guarded(GuardMod(TOP_K, wire=True), app(moved))(message, own)
    assert "secure aggregation" in reason(reply)
    dense = guarded(GuardMod(TOP_K), app(moved))(instruction(model().state_dict()), own)
    assert dense.has_content()


def test_buffers_need_a_word_and_counters_that_a_server_averaged_come_back() -> None:
    normed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    received = normed.state_dict()
    averaged = {k: v if v.is_floating_point() else v.double() for k, v in received.items()}

    def train(_: dict[str, Tensor]) -> dict[str, Tensor]:
        return moved(dict(received))

    silent = guarded(GuardMod(TOP_K), app(train))(instruction(averaged), context())
    assert "buffers='withhold'" in reason(silent)
    reply = guarded(GuardMod(TOP_K, buffers="withhold"), app(train))(
        instruction(averaged), context()
    )
    sent = sent_model(reply)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(sent[name].double(), received[name].double())


def test_tied_weights_count_once_where_the_model_is_known() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.second.weight = self.first.weight

    received = Tied().state_dict()
    after = {name: t + 1.0 for name, t in received.items()}
    defense = Defense("clip", transform=ClipByGlobalNorm(1.0))
    known = guarded(GuardMod(defense, model=Tied), app(lambda _: after))
    sent = sent_model(known(instruction(received), context()))
    change = sent["first.weight"] - received["first.weight"]
    assert torch.allclose(change.norm(), torch.tensor(1.0), atol=1e-5)
    assert torch.equal(sent["first.weight"], sent["second.weight"])


def test_another_defence_in_the_midst_of_a_run_is_refused() -> None:
    own, received = context(), model().state_dict()
    guarded(GuardMod(TOP_K), app(moved))(instruction(received), own)
    other = GuardMod(Defense("top-k", transform=ErrorFeedback(KeepTopK(0.2))))
    reply = guarded(other, app(moved))(instruction(received), own)
    assert "under other settings" in reason(reply)


def test_memory_that_was_tampered_with_is_refused() -> None:
    own, received = context(), model().state_dict()
    guarded(GuardMod(TOP_K), app(moved))(instruction(received), own)
    own.state[FACTS] = ConfigRecord({"state": "{}", "defense": "", "sent": "many"})
    reply = guarded(GuardMod(TOP_K), app(moved))(instruction(received), own)
    assert "were not written by gradguard" in reason(reply)


def test_client_level_dp_is_booked_over_rounds_and_stops_at_its_budget() -> None:
    dp, own = ClientDP(1.0, 0.5), context()
    mod = GuardMod(Defense("d", transform=[]), client_dp=dp, max_epsilon=dp.epsilon(2) + 1e-6)
    epsilons = []
    for _ in range(2):
        reply = guarded(mod, app(moved))(instruction(model().state_dict()), own)
        epsilons.append(reply.content.metric_records["metrics"]["gradguard.epsilon"])
    assert epsilons == [pytest.approx(dp.epsilon(1)), pytest.approx(dp.epsilon(2))]
    tag = reply.content.config_records[RECORD]
    assert (tag["unit"], tag["adjacency"]) == ("client", "add-remove")
    stopped = guarded(mod, app(moved))(instruction(model().state_dict()), own)
    assert "above the budget" in reason(stopped)


def test_noise_of_two_rounds_from_one_memory_differs() -> None:
    """A node that is restored from a copy sends fresh noise."""
    mod = GuardMod(Defense("d", transform=[]), client_dp=ClientDP(1.0, 1.0), wire=True)
    own, received = context(), model().state_dict()
    guarded(mod, app(lambda r: r))(asked(received), own)
    copies = [copy.deepcopy(own), copy.deepcopy(own)]
    sent = []
    for other in copies:
        reply = guarded(mod, app(lambda r: r))(asked(received, accepted=1), other)
        (array,) = reply.content.array_records["arrays"].values()
        sent.append(decode(array.data)["0.weight"])
    assert not torch.equal(*sent)


def test_messages_that_overlap_share_no_noise() -> None:
    """A server that asks twice at once gets two messages from one memory."""
    noisy = Defense("noise", transform=chain(ClipByGlobalNorm(1.0), AddGaussian(1.0)))
    own, received, sent = context(), model().state_dict(), []
    guarded(GuardMod(noisy), app(lambda r: r))(instruction(received), own)
    for other in (copy.deepcopy(own), copy.deepcopy(own)):
        reply = guarded(GuardMod(noisy), app(lambda r: r))(instruction(received), other)
        sent.append(sent_model(reply)["0.weight"])
    assert float((sent[0] - sent[1]).std()) > 0.5


def test_a_model_without_parameters_is_refused() -> None:
    entries = {"table": torch.arange(5)}
    mod = GuardMod(TOP_K, buffers="send")
    reply = guarded(mod, app(moved))(instruction(entries), context())
    assert "none of the model's entries is a parameter" in reason(reply)


def test_a_private_client_whose_memory_was_lost_refuses_to_go_on() -> None:
    mod = GuardMod(Defense("d", transform=[]), client_dp=ClientDP(1.0, 1.0), wire=True)
    reply = guarded(mod, app(moved))(asked(accepted=2), context())
    assert "its memory knows of 0" in reason(reply)
    forgetful = guarded(GuardMod(TOP_K, wire=True), app(moved))(asked(accepted=2), context())
    assert forgetful.has_content()


def test_a_simulated_clients_epsilon_is_infinite_and_no_two_share_noise() -> None:
    mod = GuardMod(
        Defense("d", transform=[]), client_dp=ClientDP(1.0, 1.0), wire=True, simulation_seed=0
    )
    federation = Federation()
    _, metrics = federation.play(lambda node: guarded(mod, app(lambda r: r)))
    assert not reasons(federation.replies)
    assert metrics is not None
    assert metrics["gradguard.epsilon"] == float("inf")
    first, second = (
        decode(next(iter(reply.content.array_records["arrays"].values())).data)["0.weight"]
        for reply in federation.replies
    )
    assert not torch.equal(first, second)


def test_a_defence_that_does_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "gradguard"):
        guarded(GuardMod(Defense("none", transform=[])), app(moved))(
            instruction(model().state_dict()), context()
        )
    assert "updates leave as they are" in caplog.text


def test_wrong_arguments_are_refused_when_the_app_is_built() -> None:
    with pytest.raises(TypeError, match="expected a Defense"):
        GuardMod(KeepTopK(0.1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="function or class"):
        GuardMod(TOP_K, model=model())
