"""The replies of a round, each read against what its sender was asked."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from gradguard.integrations.flower.arrays import record_of, tensors_of
from gradguard.integrations.flower.handshake import RECORD, Tag, Ticket
from gradguard.integrations.flower.metrics import PREFIX
from gradguard.integrations.flower.reply import (
    Form,
    ReceivedUpdate,
    ReplyError,
    form_of,
    read_reply,
)

log = logging.getLogger("gradguard")


@dataclass(frozen=True)
class Instruction:
    """What a node was asked: its answer belongs to this, and to nothing else."""

    message: Message
    ticket: Ticket
    arrays: ArrayRecord


@dataclass(frozen=True)
class Taken:
    """A reply with a whole model in it, and what its client says of it.

    Args:
        reply: As a strategy expects it; gradguard's own metrics are taken out.
        tag: ``None`` of a client without a guard.
        told: Those metrics.
        form: The names of the others.
    """

    reply: Message
    tag: Tag | None
    told: dict[str, object]
    form: Form


def take_in(
    replies: Iterable[Message],
    asked: Mapping[int, Instruction],
    *,
    accept_plain: bool,
    weighted_by: str | None,
) -> list[Taken]:
    """The replies that can be used, decoded.

    Args:
        asked: By node.
        accept_plain: Whether to use replies of clients without a guard.
        weighted_by: The metric that has to be positive, or ``None``.
    """
    taken, known = dict[int, Taken](), dict[int, dict[str, Tensor]]()
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                raise ReplyError(f"it is an error: {reply.error.reason!r}")
            if node not in asked or node in taken:
                raise ReplyError("it was not asked for in this round, or not twice")
            arrays = asked[node].arrays
            # Strategies send most nodes one and the same model.
            if id(arrays) not in known:
                known[id(arrays)] = tensors_of(arrays)
            form = form_of(reply, weighted_by)
            found = read_reply(reply, known[id(arrays)])
            _check_tag(found.tag, asked[node].ticket, accept_plain)
            taken[node] = Taken(*_rewritten(reply, asked[node], found), form)
        except ReplyError as error:
            log.warning("the reply of node %d is not used: %s", node, error)
    return _alike(list(taken.values()))


def _check_tag(tag: Tag | None, ticket: Ticket, accept_plain: bool) -> None:
    if tag is None:
        if not accept_plain:
            raise ReplyError(
                "its client has no GuardMod; DecodingStrategy(..., accept_plain=True) takes such in"
            )
    elif tag.nonce != ticket.nonce:
        raise ReplyError("it answers another message, such as one of an old round")


def _rewritten(
    reply: Message, asked: Instruction, found: ReceivedUpdate
) -> tuple[Message, Tag | None, dict[str, object]]:
    """The reply with the model in the server's names, order and dtypes.

    As the client wrote them, one reply could decide for all: strategies sum in the dtype of the
    first, and some go by position.
    """
    (metrics,) = reply.content.metric_records.values()
    told: dict[str, object] = {key: metrics.pop(key) for key in list(metrics) if _is_ours(key)}
    (name,) = asked.message.content.array_records
    content = RecordDict()
    for key, record in reply.content.config_records.items():
        if key != RECORD:
            content[key] = record
    # Last: another record of one of these names would take its place.
    content[name], content["metrics"] = record_of(found.model), metrics
    reply.content = content
    return reply, found.tag, told


def _is_ours(key: str) -> bool:
    return key.startswith(PREFIX)


def _alike(taken: list[Taken]) -> list[Taken]:
    """Replies with the same metrics: strategies give the whole round up where they differ.

    Those of more than half decide; without such, only what all have is kept.
    """
    if len(forms := Counter(one.form for one in taken)) < 2:
        return taken
    usual, count = forms.most_common(1)[0]
    if 2 * count > len(taken):
        for one in taken:
            if one.form != usual:
                odd = sorted(key for key, _ in one.form ^ usual)
                node = one.reply.metadata.src_node_id
                log.warning("the reply of node %d is not used: it differs in metrics %s", node, odd)
        return [one for one in taken if one.form == usual]
    shared = {key for key, _ in frozenset.intersection(*forms)}
    for one in taken:
        metrics = one.reply.content.metric_records["metrics"]
        for key in metrics.keys() - shared:
            del metrics[key]
    log.warning("clients differ in their metrics; used are %s", sorted(shared))
    return taken
