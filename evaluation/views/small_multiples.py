"""Leakage against knowledge inside ``report.html``: a small plot for each defence, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gradguard.evaluation.metrics import advantage
from gradguard.evaluation.report import KnowledgeScore, Row
from gradguard.evaluation.views.placing import short
from gradguard.evaluation.views.sentences import NOTICEABLE, cell_words, percent, tone

COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 3, 264, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 256, 42, 146  # of the plot inside a panel
_SHORT = {"+ auxiliary data": "+ data"}


def panels(rows: Sequence[Row]) -> str:
    """Labels read by what the attacker knows, a panel per defence.

    Args:
        rows: Rows that share stage, composition, batch size and rounds, with levels of knowledge.
    """
    lines = -(-len(rows) // COLUMNS)
    width = PANEL_WIDTH * min(COLUMNS, len(rows))
    # One panel alone would otherwise be drawn as wide as three.
    limit = f"max-width:{54 * width / (COLUMNS * PANEL_WIDTH):.0f}rem"
    parts = [
        f'<svg class="panels" style="{limit}" viewBox="0 0 {width} {PANEL_HEIGHT * lines}" '
        f'role="img" aria-label="Labels read by knowledge: {escape(cell_words(rows[0]))}">'
    ]
    for position, row in enumerate(rows):
        x, y = PANEL_WIDTH * (position % COLUMNS), PANEL_HEIGHT * (position // COLUMNS)
        parts.append(f'<g transform="translate({x} {y})">{_panel(row)}</g>')
    return "\n".join([*parts, "</svg>"])


def _panel(row: Row) -> str:
    scores = list(row.knowledge.items())
    centres = [_x(i, len(scores)) for i in range(len(scores))]
    path = " L".join(
        f"{x:.1f} {_y(score.asr):.1f}" for x, (_, score) in zip(centres, scores, strict=True)
    )
    return "".join(
        [
            f'<text class="title" x="{_LEFT}" y="18">{escape(short(row.defense))}</text>',
            *(_gridline(tick) for tick in (0.0, 0.5, 1.0)),
            f'<line class="blind" x1="{_LEFT}" x2="{_RIGHT}" y1="{_y(row.blind_asr):.1f}" '
            f'y2="{_y(row.blind_asr):.1f}"><title>blind guess {percent(row.blind_asr)}</title>'
            "</line>",
            f'<path class="steps" d="M{path}"/>',
            *(_point(row, x, *score) for x, score in zip(centres, scores, strict=True)),
            *(_level(x, name) for x, (name, _) in zip(centres, scores, strict=True)),
        ]
    )


def _x(position: int, levels: int) -> float:
    step = (_RIGHT - _LEFT) / levels
    return _LEFT + (position + 0.5) * step


def _y(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _gridline(tick: float) -> str:
    y = _y(tick)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
        f"{100 * tick:.0f}</text>"
    )


def _point(row: Row, x: float, name: str, score: KnowledgeScore) -> str:
    low, high = (_y(end) for end in score.ci)
    tip = f"{name}: {score.attack} reads {percent(score.asr)} of the labels"
    return (
        f'<g class="{_kind(row, name)}"><title>{escape(tip)}</title>'
        f'<path class="bar" d="M{x:.1f} {low:.1f} V{high:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{_y(score.asr):.1f}" r="4"/>'
        f'<text class="value" x="{x:.1f}" y="{high - 5:.1f}" text-anchor="middle">'
        f"{100 * score.asr:.0f}</text></g>"
    )


def _kind(row: Row, name: str) -> str:
    """The tone of a level: by its own interval, and that of the row where all is known."""
    if name == list(row.knowledge)[-1]:
        return tone(row)
    low, high = (advantage(end, row.blind_asr) for end in row.knowledge[name].ci)
    if low > NOTICEABLE:
        return "leaks"
    return "quiet" if high <= NOTICEABLE else "unclear"


def _level(x: float, name: str) -> str:
    return (
        f'<text class="axis" x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">'
        f"{escape(_SHORT.get(name, name))}</text>"
    )
