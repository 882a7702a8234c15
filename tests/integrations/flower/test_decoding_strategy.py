"""A strategy that decodes: what cannot be used costs its sender, and nobody else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    QFedAvg,
    Strategy,
)
from torch import Tensor, nn

from gradguard import Defense, ErrorFeedback, KeepTopK, apply_update
from gradguard.dp import ClientDP
from gradguard.integrations.flower import DecodingStrategy, GuardMod, aggregate_metrics
from gradguard.integrations.flower.arrays import record_of
from gradguard.integrations.flower.guard_mod import REFUSED, STYPE, WIRE_KEY
from gradguard.integrations.flower.handshake import RECORD, Tag, ticket_from
from gradguard.wire import decode, encode
from tests.integrations.flower.exchange import (
    Federation,
    app,
    context,
    guarded,
    model,
    moved,
    reasons,
)

TOP_K = Defense("top-k", transform=ErrorFeedback(KeepTopK(0.1)))


def client(node: int, **metrics: Any) -> ClientAppCallable:
    return guarded(GuardMod(TOP_K, wire=True), app(lambda r: moved(r, node), **metrics))


def honest_model(*nodes: int) -> dict[str, Tensor]:
    """What a round of these clients alone leads to."""
    federation = Federation(clients=max(nodes))
    unasked = lambda message, _: _failed(message)  # noqa: E731
    federation.play(lambda node: client(node) if node in nodes else unasked)
    return federation.model()


def _failed(message: Message) -> Message:
    return Message(Error(0, "crashed"), reply_to=message)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in second)


def changed(change: Callable[[Message], None], node: int) -> ClientAppCallable:
    """A client whose defended reply is changed on its way."""

    def respond(message: Message, own: Context) -> Message:
        reply = client(node)(message, own)
        change(reply)
        return reply

    return respond


def payload(reply: Message, data: bytes, stype: str = STYPE) -> None:
    array = Array("uint8", (len(data),), stype, data)
    reply.content["arrays"] = ArrayRecord({WIRE_KEY: array})


def bytes_of(reply: Message) -> bytes:
    (array,) = reply.content.array_records["arrays"].values()
    return bytes(array.data)


def truncated(reply: Message) -> None:
    payload(reply, bytes_of(reply)[:-3])


def flipped(reply: Message) -> None:
    data = bytearray(bytes_of(reply))
    data[len(data) // 2] ^= 16
    payload(reply, bytes(data))


def not_finite(reply: Message) -> None:
    update = {name: torch.zeros_like(t) for name, t in model().state_dict().items()}
    update["0.bias"][0] = float("nan")
    payload(reply, encode(update))


def other_shape(reply: Message) -> None:
    update = {name: torch.zeros_like(t) for name, t in model().state_dict().items()}
    payload(reply, encode(update | {"0.bias": torch.zeros(21)}))


def other_dtype(reply: Message) -> None:
    received = model().state_dict()
    payload(
        reply, encode({n: torch.zeros_like(t, dtype=torch.float64) for n, t in received.items()})
    )


def missing_name(reply: Message) -> None:
    update = {name: torch.zeros_like(t) for name, t in model().state_dict().items()}
    del update["0.bias"]
    payload(reply, encode(update))


def bomb(reply: Message) -> None:
    payload(reply, encode({"0.bias": torch.zeros(2**24)}))


def two_records(reply: Message) -> None:
    reply.content["more"] = ArrayRecord()


def other_record_name(reply: Message) -> None:
    reply.content["weights"] = reply.content.array_records["arrays"]
    del reply.content.array_records["arrays"]


def no_metrics(reply: Message) -> None:
    del reply.content.metric_records["metrics"]


def more_metrics(reply: Message) -> None:
    reply.content.metric_records["metrics"]["loss"] = 1.0


def no_weight(reply: Message) -> None:
    del reply.content.metric_records["metrics"]["num-examples"]


def negative_weight(reply: Message) -> None:
    reply.content.metric_records["metrics"]["num-examples"] = -8


def nan_weight(reply: Message) -> None:
    reply.content.metric_records["metrics"]["num-examples"] = float("nan")


def list_weight(reply: Message) -> None:
    reply.content.metric_records["metrics"]["num-examples"] = [8]


def foreign_tag(reply: Message) -> None:
    reply.content[RECORD] = ConfigRecord({"format": 2})


def no_config_tag(reply: Message) -> None:
    reply.content[RECORD] = MetricRecord({"format": 1})


def no_tag(reply: Message) -> None:
    del reply.content.config_records[RECORD]


def dense_lie(reply: Message) -> None:
    """Says that it is dense, and names an array of numpy's that would take 8 TB."""
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, "
    header += b"'shape': (1000000000000,), }".ljust(118 - len(header) + 10 - 1) + b"\n"
    array = Array("float64", (10**12,), "numpy.ndarray", header)
    reply.content["arrays"] = ArrayRecord({"0.weight": array})
    reply.content.config_records[RECORD]["wire"] = False


def half_precision(reply: Message) -> None:
    """Strategies sum in the dtype of the first reply."""
    halves = {n: t.half() for n, t in model().state_dict().items()}
    reply.content["arrays"] = record_of(halves)
    reply.content.config_records[RECORD]["wire"] = False


def another_nonce(reply: Message) -> None:
    reply.content.config_records[RECORD]["nonce"] = "0" * 32


BAD = [
    truncated, flipped, not_finite, other_shape, other_dtype, missing_name, bomb,
    two_records, no_metrics, more_metrics, no_weight, negative_weight,
    nan_weight, list_weight, foreign_tag, no_config_tag, no_tag, dense_lie, half_precision,
    another_nonce,
]  # fmt: skip


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
@pytest.mark.parametrize("bad", [1, 3])
def test_a_bad_reply_costs_only_its_sender(change: Callable[[Message], None], bad: int) -> None:
    federation = Federation(clients=3)
    _, metrics = federation.play(
        lambda node: changed(change, node) if node == bad else client(node)
    )
    good = [node for node in (1, 2, 3) if node != bad]
    assert same(federation.model(), honest_model(*good))
    assert metrics is not None
    assert metrics["gradguard.replies.refused"] == 1


def test_a_finite_change_to_a_model_that_is_not_is_refused() -> None:
    huge = {name: torch.full_like(t, 3e38) for name, t in model().state_dict().items()}
    federation = Federation(clients=2, initial=huge)

    def double(reply: Message) -> None:
        payload(reply, encode(huge))

    federation.play(
        lambda node: (
            changed(double, node)
            if node == 1
            else guarded(
                GuardMod(TOP_K, wire=True), app(lambda r: {k: v / 2 for k, v in r.items()})
            )
        )
    )
    assert all(bool(t.isfinite().all()) for t in federation.model().values())


def test_a_replayed_reply_is_not_used() -> None:
    federation, old = Federation(clients=2), dict[int, Message]()

    def answer(node: int) -> ClientAppCallable:
        def respond(message: Message, own: Context) -> Message:
            reply = client(node)(message, own)
            old.setdefault(node, copy.deepcopy(reply))
            if node == 1 and federation.round == 2:
                replayed = copy.deepcopy(old[1])
                again = Message(replayed.content, reply_to=message)
                return again
            return reply

        return respond

    federation.play(answer)
    before = federation.model()
    _, metrics = federation.play(answer)
    assert metrics is not None
    assert metrics["gradguard.replies.refused"] == 1
    (second,) = (r for r in federation.replies if r.metadata.src_node_id == 2)
    assert same(federation.model(), apply_update(before, decode(bytes_of(second))))


def test_a_client_that_crashes_costs_only_itself() -> None:
    federation = Federation(clients=2)
    federation.play(lambda node: client(node) if node == 2 else lambda m, _: _failed(m))
    assert same(federation.model(), honest_model(2))


def test_a_reply_of_a_node_that_was_not_asked_is_dropped() -> None:
    federation = Federation(clients=2)
    federation.play(client)
    stranger = copy.deepcopy(federation.replies[0])
    stranger.metadata.__dict__["_src_node_id"] = 77
    strategy = federation.strategy
    asked = strategy.configure_train(2, federation.arrays, ConfigRecord(), federation.grid)
    assert len(list(asked)) == 2
    arrays, _ = strategy.aggregate_train(2, [stranger])
    assert arrays is None


def test_if_nothing_can_be_used_the_model_stays() -> None:
    federation = Federation(clients=2)
    before = federation.model()
    arrays, metrics = federation.play(lambda node: changed(truncated, node))
    assert arrays is None
    assert metrics == {"gradguard.replies.refused": 2}
    assert same(federation.model(), before)


def test_wire_and_dense_lead_to_the_same_model() -> None:
    models = []
    for wire in (True, False):
        federation = Federation(clients=3)
        mod = GuardMod(TOP_K, wire=wire)
        for round_ in range(3):
            federation.play(
                lambda node, round_=round_, mod=mod: guarded(  # type: ignore[misc]
                    mod, app(lambda r: moved(r, 10 * round_ + node))
                )
            )
        models.append(federation.model())
    assert same(*models)


def test_dense_replies_need_no_strategy_of_ours() -> None:
    models = []
    for strategy in (FedAvg(), DecodingStrategy(FedAvg())):
        federation = Federation(strategy, clients=2)
        federation.play(lambda node: guarded(GuardMod(TOP_K), app(lambda r: moved(r, node))))
        models.append(federation.model())
    assert same(*models)


def test_a_plain_strategy_does_not_read_encoded_replies_in_silence() -> None:
    federation = Federation(FedAvg(), clients=2)
    federation.play(client)
    assert len(reasons(federation.replies)) == 2


@pytest.mark.parametrize("inner", [FedAvgM, FedMedian])
def test_any_strategy_goes_inside(inner: type[FedAvg]) -> None:
    models = []
    for strategy in (inner(), DecodingStrategy(inner())):
        federation = Federation(strategy, clients=3)
        wire = isinstance(strategy, DecodingStrategy)
        for _ in range(2):
            federation.play(
                lambda node, wire=wire: guarded(  # type: ignore[misc]
                    GuardMod(TOP_K, wire=wire), app(lambda r: moved(r, node))
                )
            )
        models.append({name: t.float() for name, t in federation.model().items()})
    assert all(torch.allclose(models[0][name], models[1][name], atol=1e-5) for name in models[0])


@pytest.mark.parametrize("inner", [FedAdam, FedYogi, FedAvgM, QFedAvg, FedProx, FedTrimmedAvg])
@pytest.mark.parametrize("decodes", [True, False])
def test_honest_clients_work_under_every_strategy(inner: Any, decodes: bool) -> None:
    """Some of them give the model back in double precision."""
    strategy = made(inner)
    federation = Federation(DecodingStrategy(strategy) if decodes else strategy, clients=3)
    start = dict(model().state_dict())
    for round_ in range(3):

        def train(received: dict[str, Tensor], seed: int = round_) -> dict[str, Tensor]:
            net = model()
            net.load_state_dict(received)
            return moved(dict(net.state_dict()), seed)

        call = guarded(GuardMod(TOP_K, wire=decodes), app(train, train_loss=1.0))
        federation.play(lambda _, call=call: call)  # type: ignore[misc]
        assert not reasons(federation.replies)
    assert not same(federation.model(), start)


def made(inner: Any) -> Strategy:
    strategy: Strategy = inner(**PARAMETERS.get(inner, {}))
    return strategy


PARAMETERS: dict[Any, Any] = {
    QFedAvg: {"client_learning_rate": 0.1, "q": 0.1},
    FedProx: {"proximal_mu": 0.1},
}


def lies(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> ClientAppCallable:
    """A client that answers its ticket with a plain model of its own making."""

    def respond(message: Message, own: Context) -> Message:
        ticket = ticket_from(message.content.config_records[RECORD])
        (record,) = message.content.array_records.values()
        content = RecordDict(
            {
                "arrays": record_of(change(dict(record.to_torch_state_dict()))),
                "metrics": MetricRecord({"num-examples": 8, "train_loss": 1.0}),
                RECORD: Tag(ticket.nonce, False).to_record(),
            }
        )
        return Message(content, reply_to=message)

    return respond


@pytest.mark.parametrize("inner", [FedAvg, FedMedian, FedTrimmedAvg, FedAdam, QFedAvg])
@pytest.mark.parametrize("bad", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        lambda r: {k: t.to(torch.int64) for k, t in r.items()},
        lambda r: {k: t.bool() for k, t in r.items()},
        lambda r: dict(reversed(r.items())),
    ],
    ids=["integers", "booleans", "reversed"],
)
def test_no_reply_decides_dtype_or_order_for_all(inner: Any, bad: int, change: Any) -> None:
    federation = Federation(DecodingStrategy(made(inner)), clients=3)
    for _ in range(2):
        federation.play(lambda node: lies(change) if node == bad else client(node, train_loss=1.0))
        assert not reasons(federation.replies)
    found, start = federation.model(), model().state_dict()
    assert list(found) == list(start)
    assert all(found[name].dtype == start[name].dtype for name in start)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # a root of a negative loss
def test_a_metric_that_breaks_the_aggregate_costs_one_round() -> None:
    federation = Federation(DecodingStrategy(made(QFedAvg)), clients=3)
    before = federation.model()
    arrays, _ = federation.play(lambda node: client(node, train_loss=-5.0 if node == 1 else 1.0))
    assert arrays is None
    assert same(federation.model(), before)
    arrays, _ = federation.play(lambda node: client(node, train_loss=1.0))
    assert arrays is not None


def test_flowers_dp_strategy_inside_goes_on_without_the_client_that_fails() -> None:
    inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 3)
    federation = Federation(DecodingStrategy(inner), clients=3)
    arrays, metrics = federation.play(
        lambda node: changed(not_finite, 1) if node == 1 else client(node)
    )
    assert arrays is not None
    assert metrics is not None
    assert metrics["gradguard.replies.refused"] == 1


def test_where_metrics_differ_and_no_form_has_most_what_is_shared_is_kept() -> None:
    federation = Federation(clients=2)
    _, metrics = federation.play(lambda node: client(node, loss=1.0, **{f"own{node}": 1.0}))
    assert metrics is not None
    assert metrics["gradguard.replies.refused"] == 0
    assert metrics["loss"] == 1.0
    assert "own1" not in metrics
    assert same(federation.model(), honest_model(1, 2))


def test_names_of_records_do_not_matter() -> None:
    federation = Federation(clients=2)
    federation.play(lambda node: changed(other_record_name, node) if node == 1 else client(node))
    assert same(federation.model(), honest_model(1, 2))


@pytest.mark.parametrize("name", ["metrics", "arrays"])
def test_a_record_of_another_kind_takes_no_records_place(name: str) -> None:
    def disguised(reply: Message) -> None:
        own = {"metrics": "m", "arrays": "a"}[name]
        reply.content[own] = reply.content[name]
        reply.content[name] = ConfigRecord({"x": 1})

    federation = Federation(clients=2)
    federation.play(lambda node: changed(disguised, node) if node == 1 else client(node))
    assert same(federation.model(), honest_model(1, 2))


def test_a_second_reply_of_a_node_is_dropped() -> None:
    federation, strategy = Federation(clients=2), DecodingStrategy(FedAvg())
    asked = strategy.configure_train(1, federation.arrays, ConfigRecord(), federation.grid)
    replies = []
    for message in asked:
        node = message.metadata.dst_node_id
        replies.append(client(node)(copy.deepcopy(message), context(node)))
    _, metrics = strategy.aggregate_train(1, [*replies, *copy.deepcopy(replies)])
    assert metrics is not None
    assert metrics["gradguard.replies.refused"] == 2


def test_epsilon_of_a_round_is_the_largest() -> None:
    noises = {1: 4.0, 2: 1.0, 3: 2.0}
    federation = Federation(clients=3)

    def answer(node: int) -> ClientAppCallable:
        mod = GuardMod(Defense("d", transform=[]), client_dp=ClientDP(noises[node], 1.0), wire=True)
        return guarded(mod, app(moved, loss=float(node)))

    _, metrics = federation.play(answer)
    assert metrics is not None
    assert metrics["gradguard.epsilon"] == pytest.approx(ClientDP(1.0, 1.0).epsilon(1))
    assert metrics["loss"] == pytest.approx(2.0)  # as Flower averages it


def test_epsilons_of_different_units_have_no_largest() -> None:
    federation = Federation(clients=2)

    def says_example(reply: Message) -> None:
        reply.content.config_records[RECORD]["unit"] = "example"

    def answer(node: int) -> ClientAppCallable:
        mod = GuardMod(Defense("d", transform=[]), client_dp=ClientDP(1.0, 1.0), wire=True)

        def respond(message: Message, own: Context) -> Message:
            reply = guarded(mod, app(moved))(message, own)
            if node == 1:
                says_example(reply)
            return reply

        return respond

    _, metrics = federation.play(answer)
    assert metrics is not None
    assert metrics["gradguard.epsilon"] == float("inf")


def test_flowers_own_average_can_be_told_to_take_the_largest() -> None:
    federation = Federation(FedAvg(train_metrics_aggr_fn=aggregate_metrics), clients=2)

    def answer(node: int) -> ClientAppCallable:
        mod = GuardMod(Defense("d", transform=[]), client_dp=ClientDP(float(node), 1.0))
        return guarded(mod, app(moved))

    _, metrics = federation.play(answer)
    assert metrics is not None
    assert metrics["gradguard.epsilon"] == pytest.approx(ClientDP(1.0, 1.0).epsilon(1))


def test_a_client_without_epsilon_makes_that_of_the_round_infinite() -> None:
    told: list[Any] = [{"num-examples": 1, "gradguard.epsilon": 1.0}, {"num-examples": 1}]
    records = [RecordDict({"m": MetricRecord(table)}) for table in told]
    assert aggregate_metrics(records[:1], "num-examples")["gradguard.epsilon"] == 1.0
    assert aggregate_metrics(records, "num-examples")["gradguard.epsilon"] == float("inf")


def test_clients_without_a_guard_are_refused_unless_they_are_let_in() -> None:
    plain = app(lambda r: moved(r, 1))
    strict = Federation(clients=2)
    strict.play(lambda node: client(node) if node == 2 else plain)
    assert same(strict.model(), honest_model(2))
    open_ = Federation(DecodingStrategy(FedAvg(), accept_plain=True), clients=2)
    open_.play(lambda node: client(node) if node == 2 else plain)
    assert not same(open_.model(), strict.model())


def test_the_reference_is_what_each_client_was_sent() -> None:
    class Personal(FedAvg):
        """Sends every node a model of its own."""

        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            for message in super().configure_train(server_round, arrays, config, grid):
                node = message.metadata.dst_node_id
                own = {k: v + node for k, v in model().state_dict().items()}
                content = RecordDict(dict(message.content.items()))
                content["arrays"] = record_of(own)
                message.content = content
                yield message

    federation = Federation(DecodingStrategy(Personal()), clients=2)
    mod = GuardMod(Defense("none", transform=[]), wire=True)
    federation.play(lambda _: guarded(mod, app(lambda r: {k: v + 1 for k, v in r.items()})))
    start = model().state_dict()
    for name, tensor in federation.model().items():
        assert torch.allclose(tensor, start[name] + 2.5, atol=1e-5)


def test_buffers_and_counters_survive_rounds() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    federation = Federation(clients=2, initial=normed().state_dict())
    counters = []

    def train(received: dict[str, Tensor]) -> dict[str, Tensor]:
        net = normed()
        net.load_state_dict(received)
        net(torch.randn(8, 4)).sum().backward()
        return dict(net.state_dict())

    for _ in range(2):
        mod = GuardMod(TOP_K, wire=True, buffers="withhold")
        federation.play(lambda _, mod=mod: guarded(mod, app(train)))  # type: ignore[misc]
        assert not reasons(federation.replies)
        counters.append(float(federation.model()["1.num_batches_tracked"]))
    assert counters == [0.0, 0.0]


def test_a_wrong_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a strategy"):
        DecodingStrategy(FedAvg)  # type: ignore[arg-type]


def test_an_error_of_ours_has_a_code_of_its_own() -> None:
    federation = Federation(clients=2)
    federation.play(lambda node: guarded(GuardMod(TOP_K, wire=True), app(lambda r: {})))
    assert {reply.error.code for reply in federation.replies} == {REFUSED}
