"""The page's section on certificates: what is proven beside what was measured."""

from __future__ import annotations

from gradguard.evaluation.certificates.law import epsilon_up, promise_alone
from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.views.sentences import cell_words, tone
from gradguard.evaluation.views.table import certified_text, with_interval
from gradguard.evaluation.views.text import escape, number_cell, table, text_cell

_COLUMNS = (
    ("defence", "text"),
    ("conditions", "text"),
    ("labels read %", "number"),
    ("labels at most %", "number"),
    ("one label at most %", "number"),
    ("epsilon of a training run", "number"),
)


def promises(report: Report, chart: str) -> str:
    """What is proven, as a chart, in a table and in words; nothing where no row has a certificate.

    Args:
        chart: The chart, as HTML.
    """
    certified = [row for row in report.rows if row.certificate is not None]
    if not certified:
        return ""
    return "\n".join(
        [
            '<section id="proven"><h2>What is proven, against every attacker</h2>',
            f"<p>Checked: {escape(report.provenance.get('certificates', ''))}.</p>",
            chart,
            "<details><summary>All certificates in a table</summary>",
            table(_COLUMNS, [_row(row) for row in certified]),
            "</details>",
            "<details><summary>What each certificate promises, and what not</summary>",
            _in_words(certified),
            "</details></section>",
        ]
    )


def _row(row: Row) -> str:
    both, one = certified_text(row)
    cells = [
        text_cell(row.defense),
        text_cell(cell_words(row)),
        number_cell(row.worst_asr, with_interval(row.worst_asr, row.worst_ci), tone(row)),
        *(f"<td>{escape(text)}</td>" for text in (both, one, epsilon_up(row))),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _in_words(rows: list[Row]) -> str:
    # The same for every model: noise does not depend on how far the model is trained.
    said = dict.fromkeys((row.defense, promise_alone(row) or "") for row in rows)
    outside = dict.fromkeys(entry for row in rows for entry in (row.certificate or {})["outside"])
    promised = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in said)
    excluded = "".join(f"<li>{escape(entry)}</li>" for entry in outside)
    return f"<dl>{promised}</dl><p>None of this covers:</p><ul>{excluded}</ul>"
