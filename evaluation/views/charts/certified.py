"""What is proven beside what was measured, for rows with a certificate."""

from __future__ import annotations

from collections.abc import Sequence

from gradguard.evaluation.report import Row
from gradguard.evaluation.views.charts.marks import Figure, bars, hundredfold, names_axis, positions


def certified(rows: Sequence[Row]) -> Figure | None:
    """Labels read and the most that any attacker reads, and a blind guess; ``None`` without any.

    Guarantees:

    - only rows with a certificate are shown, each beside its own.
    """
    numbered = [(n, row) for n, row in enumerate(rows) if row.certificate is not None]
    if not numbered:
        return None
    proven = [row for _, row in numbered]
    places = positions(proven)
    shared = {
        "type": "scatter",
        "mode": "markers",
        "y": [places[row.defense] for row in proven],
        "customdata": [number for number, _ in numbered],
    }
    read = [row.worst_asr for row in proven]
    bounds = [(row.certificate or {})["multiset"]["value"] for row in proven]
    return {
        "data": [
            shared
            | {
                "name": "read by the best attack here",
                "x": [hundredfold(share) for share in read],
                "error_x": bars(read, [row.worst_ci for row in proven]),
                "marker": {"symbol": "circle", "size": 10},
                "meta": "series-0",
            },
            shared
            | {
                "name": "proven: nobody reads more",
                "x": [hundredfold(share) for share in bounds],
                "marker": {"symbol": "line-ns-open", "size": 18, "line": {"width": 3}},
                "meta": "series-5",
            },
            shared
            | {
                "name": "blind guess",
                "x": [hundredfold(row.blind_asr) for row in proven],
                "marker": {"symbol": "x-thin-open", "size": 8, "line": {"width": 1.5}},
                "meta": "soft",
            },
        ],
        "layout": {
            "xaxis": {"title": {"text": "labels read, %"}, "range": [-3, 104]},
            "yaxis": names_axis(proven),
        },
    }
