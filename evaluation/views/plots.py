"""The scatter plot as PNG and SVG files, for papers and slides."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.views.placing import short, spread
from gradguard.evaluation.views.sentences import cell_words, leaks, tone
from gradguard.evaluation.views.table import by_cell

_BLIND = "#7a5b00"
_COLORS = {"leaks": "#b3261e", "unclear": "#a35200", "quiet": "#1c6e4a"}


def draw(report: Report) -> dict[str, bytes]:
    """``{"png": ..., "svg": ...}``: labels read against accuracy, a panel per conditions.

    Uses the Agg canvas directly: no display is needed, and the caller's own matplotlib backend
    stays as it is.
    """
    groups = by_cell(report)
    figure = Figure(figsize=(7.6, 4.2 * max(len(groups), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, rows in enumerate(groups, start=1):
        _panel(figure.add_subplot(len(groups), 1, index), rows)
    found = {}
    # A fixed salt and no date: the same report gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "gradguard", "svg.fonttype": "none"}):
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else None
            with warnings.catch_warnings():
                # A name in a script that the font lacks is drawn as boxes; nothing is lost.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            found[kind] = buffer.getvalue()
    return found


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    words = cell_words(rows[0])
    # A title that is wider than the picture would leave no room for the plot.
    title = short(words[0].upper() + words[1:], 90)
    # Conditions and names are data: a dollar sign in one would otherwise start a formula.
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    blind = 100 * sum(row.blind_asr for row in rows) / len(rows)
    axes.axhline(blind, color=_BLIND, linestyle="--", linewidth=1)
    axes.text(25, blind - 4, "blind guess", color=_BLIND, fontsize=8)
    # Of names for points at one height, that of the rightmost comes first: fewer lines cross.
    rows = sorted(rows, key=lambda row: (row.worst_asr, row.accuracy))
    slots = spread([100 * row.worst_asr for row in rows], gap=6.5, low=0, high=102)
    for row, slot in zip(rows, slots, strict=True):
        _point(axes, row, slot)
    axes.set(xlim=(0, 101), ylim=(0, 104))
    axes.set_xlabel("test accuracy, %")
    axes.set_ylabel("labels read by the best attack, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _point(axes: Axes, row: Row, slot: float) -> None:
    x, y = 100 * row.accuracy, 100 * row.worst_asr
    color = _COLORS[tone(row)]
    low, high = (100 * end for end in row.worst_ci)
    axes.plot([x, x], [low, high], color=color, linewidth=1.2)
    if row.accuracy_ci is not None:
        axes.plot([100 * end for end in row.accuracy_ci], [y, y], color=color, linewidth=1.2)
    # Filled or hollow as well as red or green: colour alone would not reach everyone.
    face = color if leaks(row) else "white"
    axes.plot([x], [y], "o", color=color, markerfacecolor=face, markersize=6)
    axes.plot([x, 103], [y, slot], color="0.5", linewidth=0.4, alpha=0.6, clip_on=False)
    name = short(row.defense) + (" (diverged)" if row.diverged else "")
    axes.text(104, slot, name, fontsize=8, va="center", parse_math=False)
