"""Runs of equal releases: what a ledger stores, how it grows and what it may be replaced by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

History = list[tuple[float, float, int]]
"""Runs of equal releases: noise multiplier, sample rate, how many."""

FORMAT = 1


def appended(history: History, z: float, q: float, count: int) -> History:
    """``history`` and ``count`` more releases; equal neighbours are one entry."""
    if history and history[-1][:2] == (z, q):
        return [*history[:-1], (z, q, history[-1][2] + count)]
    return [*history, (z, q, count)]


def history_from(state: Mapping[str, Any]) -> History:
    """The history in a stored state.

    Raises:
        ValueError: Not such a state, or no history that a ledger can have written.
    """
    try:
        if state["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {state['format']!r}")
        entries = [(z, q, n) for z, q, n in state["history"]]
        state["accountant"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the state of a privacy ledger: {error}") from None
    for z, q, n in entries:
        # By type, for true is 1 and half a release would be cut off.
        numbers = type(n) is int and {type(z), type(q)} <= {int, float}
        if not (numbers and 0 <= z < math.inf and 0 < q <= 1 and n > 0):
            raise ValueError(f"a privacy ledger cannot hold {n!r} releases with z={z!r}, q={q!r}")
    return [(float(z), float(q), n) for z, q, n in entries]


def begins_with(history: History, start: History) -> bool:
    """Whether every release of ``start`` is in ``history``, at the same place.

    >>> begins_with([(1.0, 0.1, 5), (2.0, 0.1, 1)], [(1.0, 0.1, 4)])
    True
    """
    if not start:
        return True
    *whole, (z, q, n) = start
    at = len(whole)
    return history[:at] == whole and len(history) > at and _holds(history[at], z, q, n)


def _holds(entry: tuple[float, float, int], z: float, q: float, count: int) -> bool:
    return entry[:2] == (z, q) and entry[2] >= count
