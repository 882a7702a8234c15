"""``report.html``: one file without outside resources; a browser needs no network to show it."""

from __future__ import annotations

from importlib import resources
from typing import Any

from gradguard.evaluation.report import Report
from gradguard.evaluation.views.chart_sections import chart, leakage, overview
from gradguard.evaluation.views.charts.certified import certified
from gradguard.evaluation.views.charts.dots import AXES, dots
from gradguard.evaluation.views.charts.heat_map import heat_map
from gradguard.evaluation.views.charts.marks import MEASURES, TONES, hover, hundredfold
from gradguard.evaluation.views.charts.scatter import COSTS, scatter
from gradguard.evaluation.views.dimensions import FILTERS, codes, filter_form, values
from gradguard.evaluation.views.embedding import json_for_script, policy
from gradguard.evaluation.views.method import method
from gradguard.evaluation.views.plotly_script import charts_hint, plotly_script
from gradguard.evaluation.views.promises import promises
from gradguard.evaluation.views.row_table import row_table
from gradguard.evaluation.views.sentences import (
    brief,
    by_defense,
    closing_line,
    failed_line,
    failed_words,
    sentences,
    tone,
    undefended_accuracy,
    worst_row,
)
from gradguard.evaluation.views.table import behind
from gradguard.evaluation.views.text import escape, sentence

FEW = 14
"""Up to so many sentences are shown at once; more are folded up."""

_SCRIPTS = (
    *("front.js", "charts.js", "scatter.js", "dots.js", "heat_map.js", "drawing.js"),
    "report.js",
)


def render_html(report: Report) -> str:
    """The whole page. Everything that comes from a study is escaped.

    Guarantees:

    - the page asks for nothing outside itself, and forbids it by its policy;
    - rows that could not be made are shown with their reasons;
    - without plotly it says so, and shows the picture of ``tradeoff.svg`` instead.
    """
    plotly = plotly_script()
    scripts = [*([plotly] if plotly else []), "\n".join(_asset(name) for name in _SCRIPTS)]
    data = json_for_script(page_data(report))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>What still leaks: gradguard report</title>",
            f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>",
            *_body(report, interactive=plotly is not None),
            f'<script type="application/json" id="data">{data}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _body(report: Report, *, interactive: bool) -> list[str]:
    return [
        "<header><h1>What still leaks, and what hiding it costs</h1>",
        f'<p class="lead">{escape(closing_line(report))}</p>',
        *_warnings(report),
        f'<p class="soft">{escape(behind(report))}</p></header>',
        _sentences(report),
        filter_form(report),
        "<main>",
        *([overview(report, interactive=interactive), leakage(report)] if report.rows else []),
        promises(report, chart("certified", "Measured and proven")),
        '<section><h2>All rows</h2><p class="soft">A click on a row, or the arrow keys and Enter, '
        "shows its point above. A click on a column's name sorts.</p>",
        row_table(report),
        _skipped(report),
        "</section>",
        f"<section><h2>How this was measured</h2>{method(report)}</section>",
        "</main>",
        "" if interactive else f'<p class="soft">{escape(sentence(charts_hint() or ""))}</p>',
    ]


def page_data(report: Report) -> dict[str, Any]:
    """What the page's script needs: conditions of the rows, and the charts with all of them."""
    rows, known = report.rows, values(report)
    axes = {
        axis: {measure: dots(rows, axis=axis, measure=measure) for measure in MEASURES}
        for axis in ("knowledge", *AXES)
        if rows and dots(rows, axis=axis) is not None
    }
    return {
        "filters": [name for name, _ in FILTERS],
        "values": known,
        "rows": codes(rows, known),
        "failures": codes(report.failures, known),
        "defenses": [row.defense for row in rows],
        "diverged": [number for number, row in enumerate(rows) if row.diverged],
        "blind": [hundredfold(row.blind_asr) for row in rows],
        "hover": [hover(row) for row in rows],
        "charts": {
            "scatter": {
                cost: {m: scatter(rows, cost=cost, measure=m) for m in MEASURES} for cost in COSTS
            },
            "heat_map": heat_map(rows),
            "certified": certified(rows),
            "dots": axes,
        },
    }


def _asset(name: str) -> str:
    return resources.files("gradguard.evaluation.views").joinpath(name).read_text(encoding="utf-8")


def _warnings(report: Report) -> list[str]:
    said = []
    if not report.complete:
        said.append("Interrupted: only the rows that were finished are shown.")
    if (failed := failed_line(report)) is not None:
        said.append(failed)
    said += [f"{warning}." for warning in report.provenance.get("warnings", [])]
    found = [f'<p class="warn">{escape(text)}</p>' for text in said]
    if report.failures:
        items = "".join(f"<li>{escape(failed_words(f))}</li>" for f in report.failures)
        opened = " open" if len(report.failures) <= FEW // 2 else ""
        found.append(f"<details{opened}><summary>Why not</summary><ul>{items}</ul></details>")
    return found


def _sentences(report: Report) -> str:
    base, lines = undefended_accuracy(report), []
    for name, rows in by_defense(report).items():
        kind = tone(worst_row(rows))
        lines.append(
            f'<dt>{escape(name)}</dt><dd><span class="mark {kind}">{TONES[kind][0]}</span> '
            f"{escape(sentence(brief(rows, base)))}</dd>"
        )
    if not lines:
        return ""
    whole = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(sentence(said.removeprefix(f'{name}: ')))}</dd>"
        for name, said in sentences(report).items()
    )
    listed = f'<dl class="sentences">{"".join(lines)}</dl>'
    if len(lines) > FEW:
        listed = f"<details><summary>All {len(lines)} defences</summary>{listed}</details>"
    return (
        f"<section><h2>Each defence in a sentence</h2>{listed}<details><summary>In full: other "
        f"stages, the conditions, and what is proven</summary>"
        f'<dl class="sentences">{whole}</dl></details></section>'
    )


def _skipped(report: Report) -> str:
    found = {(row.defense, name, why) for row in report.rows for name, why in row.skipped.items()}
    if not found:
        return ""
    items = "".join(
        f"<li>{escape(name)} against {escape(defense)}: {escape(why)}</li>"
        for defense, name, why in sorted(found)
    )
    return (
        "<details><summary>Attacks that cannot be mounted, which is no low score</summary>"
        f"<ul>{items}</ul></details>"
    )
