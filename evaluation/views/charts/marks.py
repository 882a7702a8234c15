"""What the charts have in common: numbers, names and marks, told apart by shape and colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.report import Row
from gradguard.evaluation.views.placing import short
from gradguard.evaluation.views.sentences import cell_words, percent

Figure = dict[str, Any]
"""``data`` (a list of traces) and ``layout``, as plotly.js reads them.

Every trace has ``customdata``: for each of its points the position of its row in the report. The
page's script filters points by it, so that all charts follow the same filters as the table. Colours
are left to the script, which knows whether the page is light or dark: ``meta`` names one.
"""

MEASURES = {"advantage": "advantage over a blind guess, %", "labels": "labels read, %"}
"""What can be shown of the worst attack, and how its axis is called."""

TONES = {
    "leaks": ("leaks", "circle"),
    "unclear": ("may leak", "diamond-open"),
    "quiet": ("no leak shown", "square-open"),
}
"""The legend's words and the symbol for each answer of ``sentences.tone``."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "pentagon")
"""For the values of a condition, in their order."""


def hundredfold(share: float, digits: int = 2) -> float:
    """A share in percent, rounded: more digits than are shown would only make the page longer.

    >>> hundredfold(0.123456)
    12.35
    """
    return round(100 * share, digits)


def plain(text: str) -> str:
    """Text that plotly.js shows as it is: it would read ``<b>`` and ``&lt;`` as markup."""
    return escape(text)


def measured(row: Row, measure: str) -> tuple[float, Interval]:
    """The worst case of a row and its interval, as shares; ``measure`` is one of ``MEASURES``."""
    if measure == "labels":
        return row.worst_asr, row.worst_ci
    return row.advantage, row.advantage_ci


def bars(values: Sequence[float], intervals: Sequence[Interval | None]) -> dict[str, Any]:
    """Error bars in percent around ``values``, both as shares; no interval is no bar."""
    ends = [
        (value, value) if interval is None else interval
        for value, interval in zip(values, intervals, strict=True)
    ]
    both = list(zip(values, ends, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        # A mean of ones can end up a rounding error above the end of its interval.
        "array": [max(hundredfold(high - value), 0.0) for value, (_, high) in both],
        "arrayminus": [max(hundredfold(value - low), 0.0) for value, (low, _) in both],
        "width": 0,
        "thickness": 1.2,
    }


def names_axis(rows: Sequence[Row]) -> dict[str, Any]:
    """A vertical axis of defences in the order of the study, the first at the top."""
    names = list(positions(rows))
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [plain(short(name)) for name in names],
        "range": [len(names) - 0.4, -0.6],
        "zeroline": False,
    }


def positions(rows: Sequence[Row]) -> dict[str, int]:
    """Where each defence is on ``names_axis``."""
    return {name: place for place, name in enumerate(dict.fromkeys(r.defense for r in rows))}


def hover(row: Row) -> str:
    """What is shown beside a row's point under the pointer."""
    size = "" if row.bytes_per_update is None else f"{row.bytes_per_update:,.0f} bytes a message"
    lines = [
        f"<b>{plain(row.defense)}</b>",
        plain(cell_words(row)),
        f"{plain(row.worst_attack)} reads {_with_ends(row.worst_asr, row.worst_ci)} of the labels",
        f"a blind guess {percent(row.blind_asr)}; advantage "
        f"{_with_ends(row.advantage, row.advantage_ci)}",
        "training diverged" if row.diverged else f"accuracy {percent(row.accuracy)}",
        size,
    ]
    return "<br>".join(line for line in lines if line)


def _with_ends(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{percent(value)} ({100 * low:.0f} to {100 * high:.0f})"
