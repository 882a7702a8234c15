"""A defence as a mod of a Flower client: what training has changed is defended, then sent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Error, Message, MessageType, MetricRecord
from flwr.clientapp.typing import ClientAppCallable
from torch import nn

from gradguard.defense import Defense
from gradguard.dp import ClientDP
from gradguard.integrations.flower.arrays import record_of, tensors_of, with_dtypes_of
from gradguard.integrations.flower.handshake import RECORD, Tag
from gradguard.integrations.flower.metrics import metrics_of
from gradguard.integrations.flower.round import Round, begin
from gradguard.integrations.flower.settings import plain_client_dp
from gradguard.updates.layout import Entries
from gradguard.updates.protection import Buffers, apply_update
from gradguard.wire.sending import encode_stated

STYPE = "gradguard.wire.v1"
"""How an ``Array`` that holds one message of :mod:`gradguard.wire` calls its serialisation."""

WIRE_KEY = "gradguard.wire"
"""The name of that one array."""

REFUSED = 7001
"""The code of the error that is sent in place of a reply that could not be defended."""

log = logging.getLogger("gradguard")


class GuardMod:
    """Defend every reply to a training message before it leaves the client.

    One mod is one whole defence, and its transforms run in the order they are written; Flower runs
    the mods of a list on a reply in reverse. Put it first in the list: a mod before it would change
    what has been defended.

    Everything that is not said here can be said by the run's config or the node's, in kebab case
    with ``gradguard-`` in front: ``gradguard-defense`` with the text of ``Defense.to_json()``,
    ``gradguard-wire``, ``gradguard-buffers``, ``gradguard-noise-multiplier``,
    ``gradguard-max-update-norm``, ``gradguard-delta``, ``gradguard-max-epsilon``,
    ``gradguard-aggregated``, ``gradguard-simulation-seed``. A node's config overrules the rest.

    Guarantees:

    - a reply leaves defended, or an error leaves in its place; never the model as it was trained;
    - the memory of the defence is the client's ``Context.state``: it survives rounds, processes
      and actors, and no two clients share it;
    - a round that is refused leaves that memory as it was;
    - no two messages have the same noise, not even from copies of one memory;
    - arrays in replies to other messages, such as evaluation, are refused: nothing defends them;
    - the update is bitwise that of :class:`gradguard.UpdateGuard`, where the transforms draw
      nothing at random or have a simulation seed.

    Not guaranteed: anything about metrics, the number of examples and other records that the app
    puts into its reply, and that a node sends an error tells that its round was refused. Epsilon
    counts what ``Context.state`` knows of: messages that overlap in time are counted as one, and a
    SuperNode that restarts may have lost it, which is noticed behind a ``DecodingStrategy`` alone.

    Args:
        defense: See :class:`gradguard.integrations.update_settings.UpdateSettings`, as for all
            below; with ``dp`` the app has to train by :func:`dp_sgd`.
        model: Makes the model that is trained, for what is a parameter and what a buffer, and
            which weights are tied; without it names and dtypes decide. Needed with ``dp``.
        wire: Needs :class:`DecodingStrategy` on the server.
        client_dp: Client-level DP; the transforms then run after its noise.

    Raises:
        TypeError: ``defense`` or ``model`` is none.

    >>> from gradguard import ErrorFeedback, KeepTopK
    >>> GuardMod(Defense("top-k", transform=ErrorFeedback(KeepTopK(0.05))), wire=True)
    GuardMod(defense='top-k', wire=True)
    """

    def __init__(
        self,
        defense: Defense | None = None,
        *,
        model: Callable[[], nn.Module] | None = None,
        wire: bool | None = None,
        buffers: Buffers | None = None,
        client_dp: ClientDP | None = None,
        max_epsilon: float | None = None,
        aggregated: bool | None = None,
        simulation_seed: int | None = None,
    ) -> None:
        if defense is not None and not isinstance(defense, Defense):
            raise TypeError(f"expected a Defense, got {defense!r}")
        if model is not None and (isinstance(model, nn.Module) or not callable(model)):
            raise TypeError(f"model must be a function or class that makes one, got {model!r}")
        stated = {
            "defense": defense,
            "wire": wire,
            "buffers": buffers,
            "max-epsilon": max_epsilon,
            "aggregated": aggregated,
            "simulation-seed": simulation_seed,
            **plain_client_dp(client_dp),
        }
        self.stated = {key: value for key, value in stated.items() if value is not None}
        self.model = model

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """As Flower calls a mod."""
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return _without_arrays(message, call_next(message, context))
        try:
            # Before the app runs: it may change what it was given.
            begun = begin(message, context, self.stated, self.model)
        except Exception as error:
            return _refusal(message, error)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        try:
            return _defended(reply, context, begun)
        except Exception as error:
            # An answer, not a raise: what DP-SGD has booked is kept only if the mod returns.
            return _refusal(message, error)

    def __repr__(self) -> str:
        stated: dict[str, Any] = {key.replace("-", "_"): v for key, v in self.stated.items()}
        if isinstance(defense := stated.get("defense"), Defense):
            stated["defense"] = defense.name
        return f"GuardMod({', '.join(f'{key}={value!r}' for key, value in stated.items())})"


def _defended(reply: Message, context: Context, begun: Round) -> Message:
    key, record = begun.only_arrays(reply)
    metrics = _metrics_in(reply)
    after = begun.named(tensors_of(record))
    before = with_dtypes_of(begun.received, after)
    guard = begun.guard(context, before)
    update = guard.protect(before, after)
    privacy = begun.privacy(context, guard)
    if begun.settings.wire:
        names = [begun.sent_name(name) for name in guard.layout.parameters]
        payload = encode_stated(begun.as_sent(update), guard.state, names=names)
        arrays = ArrayRecord({WIRE_KEY: Array("uint8", (len(payload),), STYPE, payload)})
    else:
        arrays = record_of(begun.as_sent(apply_update(before, update)))
    content = reply.content
    content[key] = arrays
    metrics.update(metrics_of(arrays.count_bytes(), _dense_bytes(after), privacy))
    said = ("", "") if privacy is None else (privacy.unit, privacy.accountant)
    content[RECORD] = Tag(begun.nonce, begun.settings.wire, *said).to_record()
    begun.remember(context, guard)  # last: nothing after it raises
    return reply


def _dense_bytes(entries: Entries) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in entries.values())


def _metrics_in(reply: Message) -> MetricRecord:
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        raise ValueError(
            f"the app's reply has {len(records)} MetricRecords; Flower's strategies expect exactly "
            "one, with the number of examples"
        )
    return records[0]


def _without_arrays(message: Message, reply: Message) -> Message:
    if reply.has_error() or not reply.content.array_records:
        return reply
    kind = message.metadata.message_type
    return _refusal(
        message,
        ValueError(
            f"the reply to a {kind!r} message has arrays, and only those of replies to 'train' "
            "messages are defended; leave them out"
        ),
    )


def _refusal(message: Message, error: Exception) -> Message:
    reason = f"gradguard sent nothing: {error}"
    log.error(reason)
    return Message(Error(REFUSED, reason), reply_to=message)
