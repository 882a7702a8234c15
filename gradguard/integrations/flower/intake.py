"""The replies of a round, each read against what its sender was asked; the unusable are errors."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Error, Message
from torch import Tensor

from gradguard.finite import is_finite
from gradguard.integrations.flower.arrays import record_of, tensors_of
from gradguard.integrations.flower.guard_mod import REFUSED
from gradguard.integrations.flower.handshake import Tag, Ticket
from gradguard.integrations.flower.reply import Form, ReplyError, form_of, read_reply
from gradguard.updates.protection import apply_update

log = logging.getLogger("gradguard")


@dataclass(frozen=True)
class Instruction:
    """What a node was asked: its answer belongs to this, and to nothing else."""

    message: Message
    ticket: Ticket
    arrays: ArrayRecord


@dataclass(frozen=True)
class Taken:
    """A reply with a whole model in it, and what its client says of it."""

    reply: Message
    tag: Tag | None
    form: Form


def take_in(
    replies: Iterable[Message],
    asked: Mapping[int, Instruction],
    *,
    accept_plain: bool,
    weighted_by: str | None,
) -> tuple[list[Taken], list[Message]]:
    """The replies that can be used, decoded; and errors in place of the others.

    Args:
        asked: By node.
        accept_plain: Whether to use replies of clients without a guard.
        weighted_by: The metric that has to be positive, or ``None``.
    """
    taken, errors, known = [], list[Message](), dict[int, dict[str, Tensor]]()
    for reply in replies:
        if reply.has_error():
            errors.append(reply)
            continue
        node = reply.metadata.src_node_id
        instruction = asked.get(node)
        if instruction is None:
            log.warning("a reply of node %d is dropped: it was not asked in this round", node)
            continue
        try:
            form = form_of(reply, weighted_by)
            # Strategies send most nodes one and the same model.
            if (sent := id(instruction.arrays)) not in known:
                known[sent] = tensors_of(instruction.arrays)
            tag = _decoded(reply, instruction, known[sent], accept_plain)
            taken.append(Taken(reply, tag, form))
        except ReplyError as error:
            errors.append(unused(instruction, str(error)))
    return _alike(taken, errors, asked)


def unused(instruction: Instruction, why: str) -> Message:
    """The error that stands for a reply which is not used."""
    reason = f"the reply of node {instruction.message.metadata.dst_node_id} is not used: {why}"
    log.warning(reason)
    return Message(Error(REFUSED, reason), reply_to=instruction.message)


def _decoded(
    reply: Message, asked: Instruction, reference: dict[str, Tensor], accept_plain: bool
) -> Tag | None:
    found = read_reply(reply, reference)
    if found.tag is None:
        if accept_plain:
            return None
        raise ReplyError(
            "its client has no GuardMod; DecodingStrategy(..., accept_plain=True) takes such in"
        )
    if found.tag.nonce != asked.ticket.nonce:
        raise ReplyError("it answers another message, such as one of an old round")
    if found.tag.wire:
        model = apply_update(reference, found.update)
        if not all(is_finite(t) for t in model.values() if t.is_floating_point()):
            raise ReplyError("the model it leads to is not finite")
        (name,) = reply.content.array_records
        reply.content[name] = record_of(model)
    return found.tag


def _alike(
    taken: list[Taken], errors: list[Message], asked: Mapping[int, Instruction]
) -> tuple[list[Taken], list[Message]]:
    """Without replies whose records are not those of most: strategies give the round up then."""
    if len(forms := Counter(one.form for one in taken)) < 2:
        return taken, errors
    usual = forms.most_common(1)[0][0]
    for one in taken:
        if one.form != usual:
            odd = sorted({key or record for record, key, _ in one.form ^ usual})
            instruction = asked[one.reply.metadata.src_node_id]
            errors.append(
                unused(instruction, f"unlike those of most others it has, or lacks, {odd}")
            )
    return [one for one in taken if one.form == usual], errors
