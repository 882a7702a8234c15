"""The page's places for charts: headings, explanations, switches, and what stands in for them."""

from __future__ import annotations

import base64

from gradguard.evaluation.report import Report
from gradguard.evaluation.views.charts.dots import AXES, KNOWLEDGE, dots
from gradguard.evaluation.views.dimensions import switch
from gradguard.evaluation.views.plotly_script import charts_hint
from gradguard.evaluation.views.sentences import auxiliary_words
from gradguard.evaluation.views.text import escape, sentence


def chart(name: str, title: str) -> str:
    """Where the script draws a chart whose content is in a table below it."""
    return (
        f'<div class="tall"><div class="chart" id="{name}" role="img" '
        f'aria-label="{escape(title)}; as a table below"></div></div>'
    )


def _with_table(name: str, title: str) -> str:
    """A chart and a table with the same content, which the script fills in."""
    return (
        f"{chart(name, title)}"
        f'<details class="same" data-chart="{name}"><summary>{escape(title)} as a table</summary>'
        "</details>"
    )


def overview(report: Report, *, interactive: bool) -> str:
    """Privacy against what it costs."""
    head = (
        '<section id="overview"><h2>Privacy against what it costs</h2>'
        "<p>A large mark is the worst case of a defence among the rows that are shown; its other "
        "rows are pale. Bars are 95&nbsp;% intervals. The line is the Pareto front: no defence "
        "is better in both directions than one on it; their names are bold. Where training "
        "diverged the mark or its name says so, and the front leaves that defence out.</p>"
    )
    if not interactive:
        return f"{head}{_still(report)}</section>"
    sized = any(row.bytes_per_update is not None for row in report.rows)
    costs = [("accuracy", "accuracy"), *([("bytes", "bytes sent")] if sized else [])]
    switches = switch("measure", "Upwards", [("advantage", "advantage"), ("labels", "labels read")])
    if sized:
        switches = switch("cost", "Across", costs) + switches
    return (
        f'{head}<div class="switches">{switches}</div>'
        '<div class="chart" id="scatter" tabindex="0" role="group" '
        'aria-label="Defences by privacy and cost. Left and right arrows go from mark to mark, '
        'Enter shows the row."></div>'
        '<ol id="key" aria-label="What the numbers beside the marks stand for" hidden></ol>'
        '<div id="card" aria-live="polite" hidden></div></section>'
    )


def _still(report: Report) -> str:
    # matplotlib takes a second to load, and is not needed where plotly is installed.
    from gradguard.evaluation.views.plots import draw

    # As an image, so that neither its styles nor its identifiers reach the rest of the page.
    picture = base64.b64encode(draw(report)["svg"]).decode("ascii")
    return (
        f'<p class="warn">{escape(sentence(charts_hint() or ""))}</p>'
        '<img class="still" alt="Labels read by the best attack against test accuracy; the '
        f'numbers are in the table of all rows" src="data:image/svg+xml;base64,{picture}">'
    )


def leakage(report: Report) -> str:
    """The attackers, and leakage over every condition that has several values."""
    parts = [
        '<section id="attackers"><h2>Which attacker reads what</h2>'
        "<p>Labels read, in percent, in the row among those shown where the attacker reads most. "
        "A cross is an attack that could not be mounted; the reason is beside the pointer and "
        "below the table of all rows.</p>"
        f"{_with_table('heat_map', 'Labels read by attacker')}</section>"
    ]
    titles = {"knowledge": KNOWLEDGE} | {axis: title for axis, (title, *_) in AXES.items()}
    found = [axis for axis in titles if dots(report.rows, axis=axis) is not None]
    if found:
        parts.append('<section id="conditions"><h2>How leakage changes</h2>')
        parts.append(
            "<p>The worst case of each defence at every value, among the rows that are shown.</p>"
        )
        if "knowledge" in found:
            parts.append(f"<p>{escape(_levels(report))}</p>")
        charts = "".join(
            f'<div class="panel" id="panel-{axis}"><h3>{escape(titles[axis])}</h3>'
            f"{_with_table(f'dots-{axis}', titles[axis])}</div>"
            for axis in found
        )
        parts.append(f'<div class="panels">{charts}</div></section>')
    return "\n".join(parts)


def _levels(report: Report) -> str:
    return (
        "What the attacker knows: the message alone; also the model; also auxiliary data, here "
        f"{auxiliary_words(report)}; and also the defence, as code to run on batches of its own. "
        "Every level has all of the one before; as its attack is chosen on calibration batches, "
        "leakage may fall a little by chance from one level to the next."
    )
