"""What leaves a site for one result, made anew, and which results may not leave at all."""

from __future__ import annotations

from collections.abc import Mapping

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from gradguard.integrations.nvflare.dxo_arrays import WIRE_KEY, arrays_like, size_of
from gradguard.integrations.nvflare.plain_values import PlainCopier
from gradguard.integrations.nvflare.site_settings import privacy_of
from gradguard.updates.layout import Entries
from gradguard.updates.update_guard import UpdateGuard
from gradguard.wire.sending import encode_stated

PREFIX = "gradguard."
"""Of the entries that a guard adds to the meta data of a DXO."""

CODES = frozenset(
    value
    for name, value in vars(ReturnCode).items()
    if isinstance(value, str) and not name.startswith("_")
)
"""The return codes that NVFlare knows."""


def reply_of_code(code: object) -> Shareable:
    """A reply of nothing but a return code, and of those that NVFlare knows."""
    known = next((one for one in CODES if one == code), ReturnCode.ERROR)
    return make_reply(known)


def reply_of(dxo: DXO, headers: Mapping[str, object]) -> Shareable:
    """A result of these, in a Shareable of its own."""
    found = Shareable()
    found[ReservedHeaderKey.HEADERS] = dict(headers)
    return dxo.update_shareable(found)


def outgoing_metrics(dxo: DXO, copier: PlainCopier) -> DXO:
    """What leaves of an evaluation.

    Raises:
        ValueError: There is anything but numbers and text in it.
    """
    data, meta = copier.table(dxo.data, "the metrics"), copier.table(dxo.meta, "the meta data")
    return DXO(DataKind.METRICS, data=data, meta=meta)


def outgoing_update(update: Entries, guard: UpdateGuard, old: DXO, *, wire: bool) -> DXO:
    """What leaves of a training: ``update``, and what is known of it beside what ``old`` says.

    Args:
        update: Of ``guard``, after which it has made no other.
        old: The result of training; its meta data is a copy.
        wire: As gradguard's bytes.
    """
    beside = {key: value for key, value in old.meta.items() if not key.startswith(PREFIX)}
    dense = sent = size_of(update)
    if wire:
        payload = encode_stated(update, guard.state, names=guard.layout.parameters)
        new, sent = DXO(DataKind.APP_DEFINED, data={WIRE_KEY: payload}, meta=beside), len(payload)
    else:
        new = DXO(DataKind.WEIGHT_DIFF, data=arrays_like(update, old.data), meta=beside)
    facts = {"bytes.sent": sent, "bytes.dense": dense, **privacy_of(guard)}
    new.meta |= {PREFIX + key: value for key, value in facts.items()}
    return new


def headers_of(shareable: Shareable, copier: PlainCopier) -> Mapping[str, object]:
    """The headers of a result, copied.

    Raises:
        ValueError: The result holds anything but them and one DXO, or they anything but numbers
            and text.
    """
    if extra := set(shareable) - {ReservedHeaderKey.HEADERS, "DXO"}:
        raise ValueError(
            f"the result holds {sorted(map(str, extra))[0]!r} beside its DXO, which no transform "
            "covers; send one DXO"
        )
    return copier.table(shareable.get(ReservedHeaderKey.HEADERS) or {}, "a header")


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
