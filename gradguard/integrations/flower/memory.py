"""What a guarded client keeps from round to round: in ``Context.state``, and nowhere else.

Flower makes the mod anew for every message, or shares one among clients; only the context is the
client's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context

from gradguard.dp import PrivacyLedger
from gradguard.integrations.flower.arrays import array_of, written

ARRAYS = "gradguard.arrays"
FACTS = "gradguard.facts"
LEDGER = "gradguard.ledger"


@dataclass(frozen=True)
class Memory:
    """A guard after its last message.

    Args:
        arrays: And ``text``: its state, as :meth:`gradguard.UpdateGuard.state_to_arrays` gives it.
        defense: Of which defence and settings, in words.
        sent: How many messages it has made in this run.
    """

    arrays: Mapping[str, np.ndarray]
    text: str
    defense: str
    sent: int


def recall(context: Context) -> Memory | None:
    """What was kept, or ``None`` before the first message.

    Raises:
        ValueError: It is incomplete, or was written by something else.
    """
    arrays, facts = context.state.get(ARRAYS), context.state.get(FACTS)
    if arrays is None and facts is None:
        return None
    if isinstance(arrays, ArrayRecord) and isinstance(facts, ConfigRecord):
        match dict(facts):
            case {"state": str(text), "defense": str(defense), "sent": int(sent)}:
                held = {name: array_of(array, name) for name, array in arrays.items()}
                return Memory(held, text, defense, sent)
    raise ValueError(
        f"the records {ARRAYS!r} and {FACTS!r} in this client's Context.state were not written "
        "by gradguard; let nothing else use these names"
    )


def remember(context: Context, memory: Memory) -> None:
    """Keep ``memory`` for the next round."""
    arrays = {name: written(array) for name, array in memory.arrays.items()}
    context.state[ARRAYS] = ArrayRecord(arrays)
    context.state[FACTS] = ConfigRecord(
        {"state": memory.text, "defense": memory.defense, "sent": memory.sent}
    )


def ledger_in(context: Context) -> PrivacyLedger | None:
    """The ledger of this client's DP-SGD, or ``None`` before the first.

    Raises:
        ValueError: It is not readable.
    """
    record = context.state.get(LEDGER)
    if record is None:
        return None
    text = record.get("ledger") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise ValueError(f"the record {LEDGER!r} in this client's Context.state is no ledger")
    return PrivacyLedger.from_json(text)


def keep_ledger(context: Context, ledger: PrivacyLedger) -> None:
    """Keep ``ledger`` for the next round."""
    context.state[LEDGER] = ConfigRecord({"ledger": ledger.to_json()})
