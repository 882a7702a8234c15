"""A strategy around any other, which reads what guarded clients send and refuses what it cannot."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from gradguard.finite import is_finite
from gradguard.integrations.flower.arrays import record_of, tensors_of
from gradguard.integrations.flower.handshake import RECORD, new_ticket
from gradguard.integrations.flower.intake import Instruction, take_in
from gradguard.integrations.flower.metrics import EPSILON, PREFIX, summary
from gradguard.integrations.flower.wrapper import Wrapper

REFUSALS = PREFIX + "replies.refused"
"""The metric that counts replies which were errors, or not used."""

log = logging.getLogger("gradguard")


class DecodingStrategy(Wrapper):
    """Any strategy of Flower's, for clients with :class:`GuardMod`.

    ``strategy`` is handed whole models, as of clients that do not encode, and Flower's averages.

    Guarantees:

    - a reply that is an error, damaged, hostile, not finite, of an old round, or from a client that
      was not asked is left out, and the others of its round are aggregated all the same;
    - models that ``strategy`` is handed have the names, order and dtypes of the one it sent;
    - an aggregate that is not finite is dropped, and the model of the round before stays;
    - a client is read against the model that *it* was sent, whatever the strategy sends to whom;
    - epsilon in the metrics of a round is the largest of its clients', and infinite if some state
      none or their units differ.

    Not guaranteed: that what clients state is true, or that a well-formed update is honest: choose
    a robust strategy inside for that. Where most clients send other metrics, the others are left
    out.

    Args:
        strategy: The one that aggregates.
        accept_plain: Use replies of clients without a ``GuardMod`` as well, which are refused
            otherwise: nothing is known of what they sent.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> DecodingStrategy(FedAvg())
    DecodingStrategy(FedAvg)
    """

    def __init__(self, strategy: Strategy, *, accept_plain: bool = False) -> None:
        super().__init__(strategy)
        self.accept_plain = accept_plain
        self._accepted: Counter[int] = Counter()
        self._asked: dict[int, Instruction] = {}
        self._arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The instructions of ``strategy``, each with a ticket of its own."""
        self._asked, self._arrays = {}, arrays
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        for message in messages:
            self._ask(message)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What ``strategy`` makes of the replies that could be read, with gradguard's metrics."""
        replies = list(replies)
        taken = take_in(
            replies,
            self._asked,
            accept_plain=self.accept_plain,
            weighted_by=_weighted_by(self.strategy),
        )
        for one in taken:
            self._accepted[one.reply.metadata.src_node_id] += 1
        ours = summary([one.told for one in taken])
        if EPSILON in ours and len({one.tag and one.tag.unit for one in taken}) > 1:
            ours[EPSILON] = math.inf
        ours[REFUSALS] = len(replies) - len(taken)
        # Errors are not handed on: Flower's DP strategies give a round up at the first.
        found = self.strategy.aggregate_train(server_round, [one.reply for one in taken])
        arrays = None if found[0] is None else _usable(found[0], self._arrays)
        return arrays, MetricRecord({**(found[1] or {}), **ours}) if replies else found[1]

    def __repr__(self) -> str:
        return f"DecodingStrategy({type(self.strategy).__name__})"

    def _ask(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        records = list(message.content.array_records.values())
        if len(records) != 1 or node in self._asked:
            raise ValueError(
                f"{type(self.strategy).__name__} sends node {node} "
                f"{'a second message' if node in self._asked else f'{len(records)} ArrayRecords'} "
                "in one round; expected one message with one model, so that replies can be read"
            )
        ticket = new_ticket(self._accepted[node])
        # A copy: strategies give all messages of a round one and the same content.
        content = RecordDict(dict(message.content.items()))
        content[RECORD] = ticket.to_record()
        message.content = content
        self._asked[node] = Instruction(message, ticket, records[0])


def _usable(found: ArrayRecord, sent: ArrayRecord) -> ArrayRecord | None:
    """An aggregate in the dtypes of the model before it, or ``None`` if it is not finite."""
    model, before = tensors_of(found), tensors_of(sent)
    if not all(is_finite(t) for t in model.values() if t.is_floating_point()):
        log.error("the aggregate of this round is not finite: the model stays as it was")
        return None
    return record_of({name: _like(t, before.get(name)) for name, t in model.items()})


def _like(found: Tensor, before: Tensor | None) -> Tensor:
    if before is None or found.dtype == before.dtype:
        return found
    # A counter that was averaged: a sum of weights is a hair less than 1.
    return (found if before.is_floating_point() else found.round()).to(before.dtype)


def _weighted_by(strategy: Strategy) -> str | None:
    """The name of the metric that weighs replies, of a strategy or of the one it wraps."""
    inner: object = strategy
    while inner is not None:
        if isinstance(key := getattr(inner, "weighted_by_key", None), str):
            return key
        inner = getattr(inner, "strategy", None)
    return None
