"""What a server makes of a client's reply: the change of the model, whatever it came as.

Whoever sends it is not trusted. A reply that cannot be read raises, and costs its sender only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from gradguard.finite import is_finite
from gradguard.integrations.flower.arrays import tensors_of
from gradguard.integrations.flower.guard_mod import STYPE
from gradguard.integrations.flower.handshake import RECORD, Tag, tag_from
from gradguard.integrations.flower.metrics import PREFIX
from gradguard.updates.layout import Entries
from gradguard.updates.protection import apply_update
from gradguard.wire import decode

OVERHEAD = 2**16
"""Bytes beyond a model's own that a decoded message may take."""


class ReplyError(ValueError):
    """A reply that is not used; says why."""


@dataclass(frozen=True)
class ReceivedUpdate:
    """One client's message, read.

    Args:
        update: *After minus before*, by name.
        model: The model that it leads to, in the names, order and dtypes of the reference.
        bytes_sent: Of the ArrayRecord that came, names included.
        tag: What a guarded client says of it, or ``None``.
    """

    update: dict[str, Tensor]
    model: dict[str, Tensor]
    bytes_sent: int
    tag: Tag | None


def read_reply(reply: Message, reference: Entries) -> ReceivedUpdate:
    """The change of the model that a reply carries.

    Guarantees:

    - names and shapes are those of ``reference``, as are the dtypes of the model that the update
      leads to, and all numbers are finite;
    - no more memory is taken than a small multiple of the model's own.

    Args:
        reply: Without an error.
        reference: The model that this client was sent.

    Raises:
        ReplyError: It is anything else.
    """
    try:
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise ReplyError(f"it has {len(records)} ArrayRecords; expected one")
        tag, sent = tag_in(reply), records[0].count_bytes()
        if tag is not None and tag.wire:
            update = _decoded(records[0], reference)
            model = apply_update(reference, update)
        else:
            after = tensors_of(records[0])
            update = _difference(after, reference)
            model = {name: after[name].to(old.dtype) for name, old in reference.items()}
        _check_finite(update, "a change")
        _check_finite(model, "a model")
        return ReceivedUpdate(update, model, sent, tag)
    except ReplyError:
        raise
    except Exception as error:
        # Whatever it is: strangers' bytes may not stop the round.
        raise ReplyError(f"{type(error).__name__}: {error}") from None


def tag_in(reply: Message) -> Tag | None:
    """What a guarded client says of its reply, or ``None`` of one that is not guarded.

    Raises:
        ValueError: It is of another format.
    """
    record = reply.content.get(RECORD)
    if record is None:
        return None
    if not isinstance(record, ConfigRecord):
        raise ValueError(f"its {RECORD!r} record is no ConfigRecord")
    return tag_from(record)


def _decoded(record: ArrayRecord, reference: Entries) -> dict[str, Tensor]:
    arrays = list(record.values())
    if len(arrays) != 1 or arrays[0].stype != STYPE:
        raise ReplyError(f"expected one array of {STYPE!r}, got {[a.stype for a in arrays][:3]}")
    # Changes of half-precision entries have four bytes.
    most = sum(max(t.element_size(), 4) * t.numel() for t in reference.values()) + OVERHEAD
    update = decode(arrays[0].data, max_bytes=most)
    _check_form(update, reference)
    for name, change in update.items():
        old = reference[name]
        # A counter that the server has averaged is a float here, and still whole at the client.
        fits = change.dtype == _change_dtype(old) or not change.is_floating_point()
        if not fits or (change.is_floating_point() and not old.is_floating_point()):
            raise ReplyError(f"{name!r} is {change.dtype}; expected a change of {old.dtype}")
    return {name: update[name] for name in reference}


def _difference(after: Entries, reference: Entries) -> dict[str, Tensor]:
    _check_form(after, reference)
    found = {}
    for name, old in reference.items():
        new = after[name]
        counts = old.is_floating_point() and not new.is_floating_point()  # see _decoded
        if new.dtype != old.dtype and not counts:
            # Strategies sum in the dtype of the first reply, so that one of float16 costs all.
            raise ReplyError(f"{name!r} is {new.dtype}; expected {old.dtype}")
        if old.dtype == torch.bool:
            found[name] = new.to(torch.bool) ^ old
        else:
            wide = _change_dtype(old)
            found[name] = new.to(wide) - old.to(wide)
    return found


def _change_dtype(old: Tensor) -> torch.dtype:
    return torch.promote_types(old.dtype, torch.float32) if old.is_floating_point() else old.dtype


def _check_form(found: Mapping[str, Tensor], reference: Entries) -> None:
    if odd := sorted(found.keys() ^ reference.keys()):
        raise ReplyError(f"{odd[0]!r} is {'new' if odd[0] in found else 'missing'}")
    for name, tensor in found.items():
        if tensor.shape != reference[name].shape:
            raise ReplyError(
                f"{name!r} has shape {tuple(tensor.shape)}; expected {tuple(reference[name].shape)}"
            )


def _check_finite(entries: Entries, what: str) -> None:
    for name, tensor in entries.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise ReplyError(f"{name!r} of {what} contains NaN or infinity")


Form = frozenset[tuple[str, int]]
"""The names of metrics, and how long they are, or -1 for a number."""


def form_of(reply: Message, weighted_by: str | None) -> Form:
    """What Flower's strategies want alike in all replies of a round, beside the arrays.

    Args:
        weighted_by: The metric that weighs the reply, or ``None`` if there is none.

    Raises:
        ReplyError: There is not one MetricRecord, a value is not finite, or the weight is not
            positive: any of it would cost the whole round.
    """
    records = list(reply.content.metric_records.items())
    if len(records) != 1:
        raise ReplyError(f"it has {len(records)} MetricRecords; expected one")
    form = set()
    _, metrics = records[0]
    for key, value in metrics.items():
        numbers = value if isinstance(value, list) else [value]
        if key.startswith(PREFIX):  # ours, which no strategy sees; epsilon may be infinite
            continue
        if not all(map(math.isfinite, numbers)):
            raise ReplyError(f"metric {key!r} is {value!r}; expected finite numbers")
        form.add((key, len(value) if isinstance(value, list) else -1))
    if weighted_by is not None:
        weight = metrics.get(weighted_by)
        if not isinstance(weight, int | float) or not weight > 0:
            raise ReplyError(f"metric {weighted_by!r} is {weight!r}; expected more than 0")
    return frozenset(form)
