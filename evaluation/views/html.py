"""``report.html``: one file without outside resources; a browser needs no network to show it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape as _escape
from importlib import resources

from gradguard.evaluation.certificates.law import epsilon_up, promise_alone
from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.views.sentences import (
    auxiliary_words,
    cell_words,
    closing_line,
    sentences,
    tone,
)
from gradguard.evaluation.views.small_multiples import panels
from gradguard.evaluation.views.svg import scatter
from gradguard.evaluation.views.table import (
    accuracy_text,
    behind,
    by_cell,
    certified_text,
    with_interval,
)


def escape(text: str) -> str:
    """Text for a page; a percent sign stays on the line of its number."""
    return _escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


_COLUMNS = (
    ("defence", "text"),
    ("model", "text"),
    ("batches", "text"),
    ("B", "number"),
    ("rounds", "number"),
    ("accuracy %", "number"),
    ("labels read %", "number"),
    ("blind %", "number"),
    ("advantage %", "number"),
    ("read best by", "text"),
    ("bytes sent", "number"),
    ("dense / sent", "number"),
    ("step time", "number"),
)


def render_html(report: Report) -> str:
    """The whole page. Everything that comes from a study is escaped."""
    partial = (
        ""
        if report.complete
        else '<p class="warn">Interrupted: only the rows that were finished are shown.</p>'
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>What still leaks: gradguard report</title>",
            f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>",
            "<h1>What still leaks, and what hiding it costs</h1>",
            f'<p class="lead">{escape(closing_line(report))}</p>{partial}',
            *(f'<p class="warn">{escape(w)}.</p>' for w in report.provenance.get("warnings", [])),
            f'<p class="soft">{escape(behind(report))}</p>',
            "<h2>Each defence in a sentence</h2>",
            _sentences(report),
            "<h2>Privacy against accuracy</h2>",
            *(_figure(rows) for rows in by_cell(report)),
            _knowledge(report),
            "<h2>All rows</h2>",
            _table(report.rows),
            _skipped(report.rows),
            _promises(report),
            "<h2>How this was measured</h2>",
            _method(report),
            f"<script>\n{_asset('report.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _asset(name: str) -> str:
    return resources.files("gradguard.evaluation.views").joinpath(name).read_text(encoding="utf-8")


def _sentences(report: Report) -> str:
    parts = []
    for name, sentence in sentences(report).items():
        text = sentence.removeprefix(f"{name}: ")
        text = text[0].upper() + text[1:]
        parts.append(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>")
    return f"<dl>{''.join(parts)}</dl>"


def _figure(rows: Sequence[Row]) -> str:
    words = cell_words(rows[0])
    caption = f"<figcaption>{escape(words[0].upper() + words[1:])}</figcaption>"
    return f"<figure>{caption}\n{scatter(rows)}\n</figure>"


def _knowledge(report: Report) -> str:
    """Leakage against knowledge, a plot per defence; nothing in reports that have no levels."""
    groups = [[row for row in rows if row.knowledge] for rows in by_cell(report)]
    figures = [_panels(rows, first=i == 0) for i, rows in enumerate(filter(None, groups))]
    if not figures:
        return ""
    explained = (
        "Labels read, in percent, by the best of those attacks that an attacker can run who has "
        "the message alone; also the model; also auxiliary data, here "
        f"{auxiliary_words(report)}; and also the defence, as code to run on batches of its own. "
        "The dashed line is a blind guess. Every level has all of the one before; as its attack "
        "is chosen on calibration batches, a line may fall a little by chance."
    )
    return "\n".join(
        ["<h2>What the attacker has to know</h2>", f"<p>{escape(explained)}</p>", *figures]
    )


def _panels(rows: Sequence[Row], *, first: bool) -> str:
    words = cell_words(rows[0])
    head = "".join(
        f'<th scope="col" class="text">{escape(name)}</th>'
        for name in ("defence", *rows[0].knowledge)
    )
    body = "\n".join(_levels_row(row) for row in rows)
    return (
        f"<details{' open' if first else ''}><summary>{escape(words[0].upper() + words[1:])}"
        f"</summary>\n{panels(rows)}\n"
        f"<details><summary>Which attacks, and their intervals</summary>"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div></details>\n</details>"
    )


def _levels_row(row: Row) -> str:
    cells = [_text(row.defense)]
    cells += [
        _text(f"{with_interval(score.asr, score.ci)} {score.attack}")
        for score in row.knowledge.values()
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _table(rows: Sequence[Row]) -> str:
    several = any(row.rounds > 1 for row in rows)
    head = "".join(
        f'<th scope="col" class="{kind if kind == "text" else ""}" data-kind="{kind}">'
        f'<button type="button">{escape(name)}</button></th>'
        for name, kind in _COLUMNS
        if several or name != "rounds"
    )
    body = "\n".join(_table_row(row, several) for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _table_row(row: Row, several_rounds: bool) -> str:
    kind = tone(row)
    cells = [
        _text(row.defense),
        _text(row.stage),
        _text(row.composition),
        _number(row.batch_size, str(row.batch_size)),
        *([_number(row.rounds, str(row.rounds))] if several_rounds else []),
        _number(row.accuracy, accuracy_text(row)),
        _number(row.worst_asr, with_interval(row.worst_asr, row.worst_ci), kind),
        _number(row.blind_asr, f"{100 * row.blind_asr:.0f}"),
        _number(row.advantage, with_interval(row.advantage, row.advantage_ci), kind),
        _text(row.worst_attack),
        *_sent(row),
        _number(row.step_overhead, f"{row.step_overhead:.2f}×"),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _sent(row: Row) -> list[str]:
    if row.bytes_per_update is None:
        return 2 * [_number(-1, "not measured")]
    ratio = row.dense_bytes / row.bytes_per_update
    return [
        _number(row.bytes_per_update, f"{row.bytes_per_update:,.0f}"),
        _number(ratio, f"{ratio:.3g}×"),
    ]


def _text(value: str) -> str:
    return f'<td class="text" data-value="{escape(value)}">{escape(value)}</td>'


def _number(value: float, shown: str, kind: str = "") -> str:
    return f'<td class="{kind}" data-value="{value!r}">{escape(shown)}</td>'


def _skipped(rows: Sequence[Row]) -> str:
    found = {(row.defense, name, why) for row in rows for name, why in row.skipped.items()}
    if not found:
        return ""
    items = "".join(
        f"<li>{escape(name)} against {escape(defense)}: {escape(why)}</li>"
        for defense, name, why in sorted(found)
    )
    return f"<p>Attacks that cannot be mounted, which is no low score:</p><ul>{items}</ul>"


def _promises(report: Report) -> str:
    """What is proven, in a table and in words; nothing where no row has a certificate."""
    if not any(row.certificate is not None for row in report.rows):
        return ""
    names = (
        *("defence", "conditions", "labels read %", "labels at most %"),
        *("one label at most %", "epsilon of a training run"),
    )
    head = "".join(
        f'<th scope="col" class="{"text" if name in names[:2] else ""}">{escape(name)}</th>'
        for name in names
    )
    body = "\n".join(_promise_row(row) for row in report.rows)
    return "\n".join(
        [
            "<h2>What is proven, against every attacker</h2>",
            f"<p>Checked: {escape(report.provenance.get('certificates', ''))}.</p>",
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>',
            f"<tbody>\n{body}\n</tbody></table></div>",
            "<details><summary>What each certificate promises, and what not</summary>",
            _promise_list(report),
            "</details>",
        ]
    )


def _promise_row(row: Row) -> str:
    both, one = certified_text(row)
    cells = [
        _text(row.defense),
        _text(cell_words(row)),
        _number(row.worst_asr, with_interval(row.worst_asr, row.worst_ci), tone(row)),
        *(f"<td>{escape(text)}</td>" for text in (both, one, epsilon_up(row))),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _promise_list(report: Report) -> str:
    # The same for every model: noise does not depend on how far the model is trained.
    rows = [row for row in report.rows if row.certificate is not None]
    said = dict.fromkeys((row.defense, promise_alone(row) or "") for row in rows)
    outside = dict.fromkeys(entry for row in rows for entry in (row.certificate or {})["outside"])
    promised = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in said)
    excluded = "".join(f"<li>{escape(entry)}</li>" for entry in outside)
    return f"<dl>{promised}</dl><p>None of this covers:</p><ul>{excluded}</ul>"


def _method(report: Report) -> str:
    explained = (
        "Labels read: the share of a batch's labels that the best attack names, counted as a "
        "multiset. Blind: the best guess without looking at the message. Advantage: how much of "
        "what a blind guess leaves open the attack gets. Red rows leak: the whole interval of "
        "the advantage is above 5 %. Amber rows may leak: some of it is, or an attack that was "
        "not chosen beforehand. A row that is not red was not shown to leak by these attacks, "
        "which is no proof that it does not."
    )
    facts = json.dumps(
        {"provenance": report.provenance, "study": report.study}, indent=2, ensure_ascii=False
    )
    return (
        f"<p>{escape(explained)}</p>\n<p>{escape(report.provenance.get('method', ''))}</p>\n"
        f"<details><summary>Study, versions and seed</summary><pre>{escape(facts)}</pre></details>"
    )
