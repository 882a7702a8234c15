"""Privacy against what it costs: a point for every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.report import Row
from gradguard.evaluation.views.charts.marks import (
    MEASURES,
    TONES,
    Figure,
    bars,
    hundredfold,
    measured,
)
from gradguard.evaluation.views.sentences import tone

COSTS = {
    "accuracy": "test accuracy, %  (further right is more useful)",
    "bytes": "bytes of a message  (further left is cheaper)",
}
"""What can be on the horizontal axis, and how it is called."""

EXACT = 9
"""Digits of a point: what is on the Pareto front must not depend on rounding."""


def scatter(rows: Sequence[Row], *, cost: str = "accuracy", measure: str = "advantage") -> Figure:
    """The worst case of every row against what the defence costs.

    Guarantees:

    - every row has its point, except rows without a number of bytes where ``cost`` is bytes;
    - error bars are the rows' 95 % intervals.

    Args:
        cost: One of ``COSTS``.
        measure: One of ``MEASURES``.
    """
    numbered = [
        (number, row)
        for number, row in enumerate(rows)
        if cost == "accuracy" or row.bytes_per_update is not None
    ]
    traces = [
        _trace([(n, row) for n, row in numbered if tone(row) == kind], kind, cost, measure)
        for kind in TONES
    ]
    shown = [row for _, row in numbered]
    return {
        "data": [trace for trace in traces if trace["customdata"]],
        "layout": {
            "xaxis": {"title": {"text": COSTS[cost]}, "zeroline": False} | _across(shown, cost),
            "yaxis": {
                "title": {"text": MEASURES[measure]},
                # From 0 or below: part of the scale would make small leaks look large.
                "range": [_floor([0.0, *_ends([measured(row, measure) for row in shown])]), 104],
                "zeroline": False,
            },
        },
    }


def _trace(
    numbered: Sequence[tuple[int, Row]], kind: str, cost: str, measure: str
) -> dict[str, Any]:
    rows = [row for _, row in numbered]
    words, symbol = TONES[kind]
    rates = [measured(row, measure) for row in rows]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": words,
        "meta": kind,
        "x": [_cost(row, cost) for row in rows],
        "y": [hundredfold(rate, EXACT) for rate, _ in rates],
        "error_y": bars([rate for rate, _ in rates], [interval for _, interval in rates]),
        "customdata": [number for number, _ in numbered],
        "marker": {"symbol": symbol, "size": 11},
    }
    if cost == "accuracy":
        trace["error_x"] = bars([row.accuracy for row in rows], [row.accuracy_ci for row in rows])
    return trace


def _cost(row: Row, cost: str) -> float:
    if cost == "accuracy" or row.bytes_per_update is None:
        return hundredfold(row.accuracy, EXACT)
    # A message of no byte at all would have no place on a logarithmic axis.
    return max(row.bytes_per_update, 1.0)


def _across(rows: Sequence[Row], cost: str) -> dict[str, Any]:
    """Type and range of the horizontal axis: the same whatever is filtered, so nothing jumps."""
    if cost == "accuracy":
        lowest = _ends([(row.accuracy, row.accuracy_ci) for row in rows])
        return {"range": [_floor(lowest), 102]}
    sizes = [math.log10(_cost(row, cost)) for row in rows] or [0.0]
    return {"type": "log", "range": [min(sizes) - 0.2, max(sizes) + 0.2], "dtick": 1}


def _ends(found: Sequence[tuple[float, Interval | None]]) -> list[float]:
    """Values, and the lower ends of their intervals."""
    return [value if interval is None else min(value, interval[0]) for value, interval in found]


def _floor(shares: Sequence[float]) -> float:
    """The lower end of an axis of percentages: a round number below all of them, or just 0."""
    lowest = 10 * math.floor(10 * min(shares, default=0.0))
    return float(max(lowest, -100)) - 3 if lowest != 0 else -3.0
