"""Leakage over one condition: training, batch size, rounds, or what the attacker knows.

A line per defence with a mark for every value of the condition. Curves over the same axis would
cross each other as soon as there are more than a handful of defences, and leave no room for names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradguard.evaluation.report import Row
from gradguard.evaluation.views.charts.marks import (
    MEASURES,
    SYMBOLS,
    Figure,
    hundredfold,
    measured,
    names_axis,
    plain,
    positions,
)
from gradguard.evaluation.views.sentences import percent

STAGES = {"init": "untrained model", "trained": "trained model"}

AXES: dict[str, tuple[str, Callable[[Row], Any], Callable[[Any], str]]] = {
    "stage": ("Over training", lambda row: row.stage, lambda v: STAGES.get(v, str(v))),
    "batch_size": ("Over batch size", lambda row: row.batch_size, lambda v: f"batches of {v}"),
    "rounds": (
        "Over rounds",
        lambda row: row.rounds,
        lambda v: "one message" if v == 1 else f"{v} messages",
    ),
}
"""Title, value of a row, and the words for a value; knowledge has its own, as a row has it all."""

KNOWLEDGE = "Over what the attacker knows"


def dots(rows: Sequence[Row], *, axis: str, measure: str = "advantage") -> Figure | None:
    """The worst case of every row, a trace for each value of ``axis``.

    Guarantees:

    - ``None`` where the condition has fewer than two values: there is nothing to compare.

    Args:
        axis: One of ``AXES``, or ``"knowledge"``.
        measure: One of ``MEASURES``.
    """
    traces = _by_knowledge(rows, measure) if axis == "knowledge" else _by(rows, axis, measure)
    if len(traces) < 2:
        return None
    places = positions(rows)
    for symbol, trace in enumerate(traces):
        trace |= {
            "type": "scatter",
            "mode": "markers",
            "y": [places[rows[number].defense] for number in trace["customdata"]],
            "marker": {"symbol": SYMBOLS[symbol % len(SYMBOLS)], "size": 10},
            "meta": f"series-{symbol % len(SYMBOLS)}",
        }
    lowest = min(min(trace["x"]) for trace in traces)
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": MEASURES[measure]},
                "range": [min(lowest - 3, -3), 104],
                "zeroline": measure == "advantage",
            },
            "yaxis": names_axis(rows),
        },
    }


def _by(rows: Sequence[Row], axis: str, measure: str) -> list[dict[str, Any]]:
    _, value_of, words = AXES[axis]
    values = list(dict.fromkeys(value_of(row) for row in rows))
    if axis != "stage":  # stages are in the order of training already
        values.sort()
    found = []
    for value in values:
        numbers = [number for number, row in enumerate(rows) if value_of(row) == value]
        shares = [hundredfold(measured(rows[n], measure)[0]) for n in numbers]
        found.append({"name": plain(words(value)), "x": shares, "customdata": numbers})
    return found


def _by_knowledge(rows: Sequence[Row], measure: str) -> list[dict[str, Any]]:
    levels = dict.fromkeys(level for row in rows for level in row.knowledge)
    found = []
    for level in levels:
        numbers = [number for number, row in enumerate(rows) if level in row.knowledge]
        scores = [rows[number].knowledge[level] for number in numbers]
        found.append(
            {
                "name": plain(level),
                "x": [hundredfold(s.asr if measure == "labels" else s.advantage) for s in scores],
                "customdata": numbers,
                # The page puts this first where the pointer is: the row's own attack knows all.
                "text": [
                    f"{plain(level)}: {plain(score.attack)} reads {percent(score.asr)} "
                    f"({100 * score.ci[0]:.0f} to {100 * score.ci[1]:.0f})"
                    for score in scores
                ],
            }
        )
    return found
