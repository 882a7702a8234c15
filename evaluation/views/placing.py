"""Where the names go in a scatter plot whose points crowd in one corner."""

from __future__ import annotations

from collections.abc import Sequence


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions near ``wanted``, in the same order, at least ``gap`` apart, within bounds.

    Where there is no room for ``gap``, the positions are evenly spaced over the whole range.

    >>> spread([5.0, 5.0, 1.0], gap=2.0, low=0.0, high=10.0)
    [5.0, 7.0, 1.0]
    >>> spread([9.0, 9.0], gap=2.0, low=0.0, high=10.0)
    [8.0, 10.0]
    """
    if len(wanted) > 1:
        gap = min(gap, (high - low) / (len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    floor = low
    for i in order:
        placed[i] = max(wanted[i], floor)
        floor = placed[i] + gap
    # What was pushed beyond the end is pushed back, and pushes its neighbours along.
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def short(name: str, most: int = 32) -> str:
    """A name cut to the width that a plot has beside it."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
