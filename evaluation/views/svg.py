"""The scatter plot inside ``report.html``: text a browser can style, search and read aloud."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gradguard.evaluation.report import Row
from gradguard.evaluation.views.placing import short, spread
from gradguard.evaluation.views.sentences import cell_words, percent, tone

WIDTH, HEIGHT = 760, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 520, 16, 380


def scatter(rows: Sequence[Row]) -> str:
    """Labels read against accuracy for the defences of one set of conditions.

    Args:
        rows: Rows that share stage, composition and batch size.
    """
    # Of names for points at one height, that of the rightmost comes first: fewer lines cross.
    rows = sorted(rows, key=lambda row: (-row.worst_asr, -row.accuracy))
    slots = spread([_y(row.worst_asr) for row in rows], gap=18, low=_TOP + 6, high=_BOTTOM - 4)
    blind = sum(row.blind_asr for row in rows) / len(rows)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Labels read against accuracy: {escape(cell_words(rows[0]))}">',
        *_grid(),
        f'<line class="blind" x1="{_LEFT}" x2="{_RIGHT}" y1="{_y(blind):.1f}" '
        f'y2="{_y(blind):.1f}"/>',
        f'<text class="axis" x="{_LEFT + 110}" y="{_y(blind) + 15:.1f}">'
        f"blind guess {percent(blind)}</text>",
        *(_leader(row, slot) for row, slot in zip(rows, slots, strict=True)),
        *(_point(row) for row in rows),
        *(_name(row, slot) for row, slot in zip(rows, slots, strict=True)),
        "</svg>",
    ]
    return "\n".join(parts)


def _x(share: float) -> float:
    return _LEFT + share * (_RIGHT - _LEFT)


def _y(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _grid() -> list[str]:
    parts = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = _x(tick), _y(tick)
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text class="axis" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{100 * tick:.0f}</text>",
            f'<text class="axis" x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">'
            f"{100 * tick:.0f}</text>",
        ]
    middle, half = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    return [
        *parts,
        f'<text class="axis" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">'
        "test accuracy, % (further right is more useful)</text>",
        f'<text class="axis" transform="translate(14 {half}) rotate(-90)" text-anchor="middle">'
        "labels read, % (lower is more private)</text>",
    ]


def _leader(row: Row, slot: float) -> str:
    x, y = _x(row.accuracy), _y(row.worst_asr)
    return f'<path class="leader" d="M{x:.1f} {y:.1f} L{_RIGHT + 4} {slot:.1f} h8"/>'


def _point(row: Row) -> str:
    x, y = _x(row.accuracy), _y(row.worst_asr)
    low, high = (_y(end) for end in row.worst_ci)
    across = ""
    if row.accuracy_ci is not None:
        left, right = (_x(end) for end in row.accuracy_ci)
        across = f"M{left:.1f} {y:.1f} H{right:.1f}"
    tip = (
        f"{row.defense}: {row.worst_attack} reads {percent(row.worst_asr)} of the labels, "
        f"accuracy {percent(row.accuracy)}" + (" (training diverged)" if row.diverged else "")
    )
    kind = tone(row)
    return (
        f'<g class="{kind}"><title>{escape(tip)}</title>'
        f'<path class="bar" d="M{x:.1f} {low:.1f} V{high:.1f} {across}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/></g>'
    )


def _name(row: Row, slot: float) -> str:
    name = escape(short(row.defense))
    return f'<text class="name" x="{_RIGHT + 16}" y="{slot + 4:.1f}">{name}</text>'
