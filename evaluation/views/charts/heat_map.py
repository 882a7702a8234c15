"""Which attacker reads how much behind which defence."""

from __future__ import annotations

from collections.abc import Sequence

from gradguard.evaluation.report import Row
from gradguard.evaluation.views.charts.marks import Figure, hundredfold, names_axis, plain


def heat_map(rows: Sequence[Row]) -> Figure:
    """Labels read, in percent: a line for every row and a column for every attack.

    The page's script joins the lines of a defence by their highest value, over the rows that its
    filters leave. ``meta`` holds what that takes: why an attack was skipped, by row and attack.

    Guarantees:

    - an attack that was skipped has no value, which is no low one, and its reason is in ``meta``.
    """
    attacks = list(dict.fromkeys(name for r in rows for name in (*r.attacks, *r.skipped)))
    scores = [
        [hundredfold(row.attacks[a].asr) if a in row.attacks else None for a in attacks]
        for row in rows
    ]
    skipped = {
        str(number): {str(attacks.index(name)): plain(why) for name, why in row.skipped.items()}
        for number, row in enumerate(rows)
        if row.skipped
    }
    trace = {
        "type": "heatmap",
        "z": scores,
        "zmin": 0,
        "zmax": 100,
        "customdata": list(range(len(rows))),
        "meta": {"skipped": skipped, "attacks": [plain(name) for name in attacks]},
        # Even in brightness, and read alike by every kind of colour vision.
        "colorscale": "Cividis",
        "xgap": 2,
        "ygap": 2,
        "colorbar": {
            "title": {"text": "%", "font": {"size": 12}},
            # In pixels: the map of many defences is taller than any screen.
            **{"lenmode": "pixels", "len": 240, "y": 1, "yanchor": "top"},
            **{"thickness": 12, "outlinewidth": 0},
        },
    }
    columns = {
        "tickvals": list(range(len(attacks))),
        "ticktext": [plain(name) for name in attacks],
        "range": [-0.5, len(attacks) - 0.5],
        "tickangle": -45,
    }
    layout = {"xaxis": columns, "yaxis": names_axis(rows)}
    return {"data": [trace], "layout": layout}
