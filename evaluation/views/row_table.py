"""The page's table of all rows, and of those that could not be made."""

from __future__ import annotations

from gradguard.evaluation.report import Failure, Report, Row
from gradguard.evaluation.views.charts.marks import TONES
from gradguard.evaluation.views.dimensions import STAGE_LABELS
from gradguard.evaluation.views.sentences import tone
from gradguard.evaluation.views.table import accuracy_text, with_interval
from gradguard.evaluation.views.text import escape, number_cell, table, text_cell

_COLUMNS = (
    ("defence", "text"),
    ("model", "text"),
    ("batches", "text"),
    ("B", "number"),
    ("rounds", "number"),
    ("verdict", "text"),
    ("labels read %", "number"),
    ("blind %", "number"),
    ("advantage %", "number"),
    ("read best by", "text"),
    ("accuracy %", "number"),
    ("bytes sent", "number"),
    ("dense / sent", "number"),
    ("step time", "number"),
)


def row_table(report: Report) -> str:
    """Every row and every failure, in the order of the report; rows have ids for the charts."""
    every: list[Row | Failure] = [*report.rows, *report.failures]
    several = any(row.rounds > 1 for row in every)
    columns = [column for column in _COLUMNS if several or column[0] != "rounds"]
    body = [_row(number, row, several) for number, row in enumerate(report.rows)]
    body += [
        _failure(number, failure, several, len(columns))
        for number, failure in enumerate(report.failures)
    ]
    return table(columns, body, name="rows")


def _conditions(row: Row | Failure, several: bool) -> str:
    return "".join(
        [
            f'<th scope="row" class="text">{escape(row.defense)}</th>',
            text_cell(STAGE_LABELS.get(row.stage, row.stage)),
            text_cell(row.composition),
            number_cell(row.batch_size, str(row.batch_size)),
            number_cell(row.rounds, str(row.rounds)) if several else "",
        ]
    )


def _row(number: int, row: Row, several: bool) -> str:
    kind = tone(row)
    size, ratio = row.bytes_per_update, None
    if size is not None and size > 0:
        ratio = row.dense_bytes / size
    cells = [
        f'<td class="text {kind}">{escape(TONES[kind][0])}</td>',
        number_cell(row.worst_asr, with_interval(row.worst_asr, row.worst_ci)),
        number_cell(row.blind_asr, f"{100 * row.blind_asr:.0f}"),
        number_cell(row.advantage, with_interval(row.advantage, row.advantage_ci), kind),
        text_cell(row.worst_attack),
        number_cell(row.accuracy, accuracy_text(row)),
        number_cell(size, "not measured" if size is None else f"{size:,.0f}"),
        number_cell(ratio, "not measured" if ratio is None else f"{ratio:.3g}×"),
        number_cell(row.step_overhead, f"{row.step_overhead:.2f}×"),
    ]
    return f'<tr id="row-{number}">{_conditions(row, several)}{"".join(cells)}</tr>'


def _failure(number: int, failure: Failure, several: bool, columns: int) -> str:
    left = columns - (5 if several else 4)
    why = f'<td class="text failed" colspan="{left}">could not be made: {escape(failure.why)}</td>'
    return f'<tr id="failure-{number}">{_conditions(failure, several)}{why}</tr>'
