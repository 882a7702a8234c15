"""What of a site's result may leave beside the update, and which results may not leave at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from torch import Tensor

from gradguard.integrations.nvflare.dxo_arrays import (
    WIRE_KEY,
    arrays_like,
    kind_of,
    size_of,
)
from gradguard.integrations.nvflare.site_settings import privacy_of
from gradguard.updates.layout import Entries
from gradguard.updates.update_guard import UpdateGuard
from gradguard.wire.sending import encode_stated

PREFIX = "gradguard."
"""Of the entries that a guard adds to the meta data of a DXO."""

MOST_VALUES = 1000
"""Of numbers and texts beside the arrays of one result."""

MOST_TEXT = 100_000
"""Of characters in all of them."""

LONGEST = 64
"""Bits of a whole number: Python's may have as many as a model."""


def outgoing_dxo(update: Entries, guard: UpdateGuard, old: DXO, *, wire: bool) -> DXO:
    """What leaves a site: ``update``, with what is known of it beside what ``old`` says.

    Args:
        update: Of ``guard``, after which it has made no other.
        old: The result of training.
        wire: As gradguard's bytes.
    """
    meta = {key: value for key, value in old.meta.items() if not key.startswith(PREFIX)}
    dense = sent = size_of(update)
    if wire:
        payload = encode_stated(update, guard.state, names=guard.layout.parameters)
        new, sent = DXO(DataKind.APP_DEFINED, data={WIRE_KEY: payload}, meta=meta), len(payload)
    else:
        new = DXO(DataKind.WEIGHT_DIFF, data=arrays_like(update, old.data), meta=meta)
    facts = {"bytes.sent": sent, "bytes.dense": dense, **privacy_of(guard)}
    new.meta |= {PREFIX + key: value for key, value in facts.items()}
    return new


def check_plain(value: object, what: str) -> None:
    """Raise unless ``value`` is made of single numbers, text and containers of them, and few.

    Algorithms put whole models beside the update, such as SCAFFOLD its control variates.

    Raises:
        ValueError: Something in it is an array, bytes or another object, or there is too much.

    >>> check_plain({"loss": 0.5, "per class": [0.1, 0.9]}, "the meta data")
    >>> check_plain({"control": np.zeros(3)}, "the meta data")
    Traceback (most recent call last):
        ...
    ValueError: the meta data of the result holds an array of 3 numbers, which no transform \
covers; expected numbers and text
    """
    text = 0
    for number, leaf in enumerate(_leaves(value), start=1):
        if not _is_plain(leaf):
            raise ValueError(
                f"{what} of the result holds {kind_of(leaf)}, which no transform covers; expected "
                "numbers and text"
            )
        text += len(leaf) if isinstance(leaf, str) else 0
        if number > MOST_VALUES or text > MOST_TEXT:
            raise ValueError(
                f"{what} of the result holds more than {MOST_VALUES:,} values, or more than "
                f"{MOST_TEXT:,} characters, which no transform covers"
            )


def check_content(shareable: Shareable) -> None:
    """Raise if a result holds anything but one DXO, and headers made of numbers and text."""
    if extra := shareable.keys() - {ReservedHeaderKey.HEADERS, "DXO"}:
        raise ValueError(
            f"the result holds {sorted(map(str, extra))[0]!r} beside its DXO, which no transform "
            "covers; send one DXO"
        )
    check_plain(shareable.get(ReservedHeaderKey.HEADERS) or {}, "a header")


def check_untouched(dxo: DXO, guard: str) -> None:
    """Raise if another filter has encrypted or encoded an update, or a guard has defended it."""
    if algorithm := dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM):
        raise ValueError(
            f"the update has been processed by {algorithm!r} already; put GuardFilter before "
            "filters that encrypt or encode"
        )
    if guard in (dxo.get_filter_history() or []):
        raise ValueError(
            "the update has been defended already: keep one GuardFilter, and put all its "
            "transforms into one defence"
        )


def refused_kind(kind: str) -> str:
    """Why a DXO of this kind is not sent, and what to send in its place."""
    if kind == DataKind.WEIGHTS:
        return (
            "the result is a whole model, and the one it started from is no longer at hand; send "
            "WEIGHT_DIFF: params_transfer_type=TransferType.DIFF"
        )
    return (
        f"the result is of kind {getattr(kind, 'value', kind)!r}, which no transform covers; "
        "expected one WEIGHT_DIFF or METRICS. For jobs of other kinds use another scope of "
        "privacy.json"
    )


def _is_plain(leaf: object) -> bool:
    if isinstance(leaf, int):
        return leaf.bit_length() <= LONGEST
    if isinstance(leaf, np.ndarray):
        return leaf.size == 1 and leaf.dtype.kind in "biuf"  # a metric that was not made a number
    if isinstance(leaf, Tensor):
        return leaf.numel() == 1
    return leaf is None or isinstance(leaf, str | float | np.number | np.bool_)


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield key
            yield from _leaves(held)
    elif isinstance(value, list | tuple | set | frozenset):
        for held in value:
            yield from _leaves(held)
    else:
        yield value
