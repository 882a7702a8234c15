"""Text and table cells of the page, escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as _escape


def escape(text: str) -> str:
    """Text for a page; a percent sign stays on the line of its number.

    >>> escape("<5 %>")
    '&lt;5\\xa0%&gt;'
    """
    return _escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def sentence(text: str) -> str:
    """Text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def text_cell(value: str) -> str:
    """A cell that is sorted by what it shows."""
    return f'<td class="text">{escape(value)}</td>'


def number_cell(value: float | None, shown: str, kind: str = "") -> str:
    """A cell that is sorted by ``value``; ``None`` comes before every number."""
    sorts = "" if value is None else f' data-v="{value:.6g}"'
    kinds = f' class="{kind}"' if kind else ""
    return f"<td{kinds}{sorts}>{escape(shown)}</td>"


LONG = 200
"""From so many rows on, the browser lays a table out only once it is near the window."""


def table(head: Sequence[tuple[str, str]], body: Sequence[str], *, name: str = "") -> str:
    """A table that scrolls inside its own box.

    Args:
        head: Names of the columns, each with ``"text"`` or ``"number"``; a table with an id can be
            sorted by them.
        body: Rows as HTML.
        name: The table's id; without one it has no buttons.
    """
    cells = "".join(_head_cell(words, kind, sortable=bool(name)) for words, kind in head)
    identity = f' id="{name}"' if name else ""
    kind = "wide" if len(body) < LONG else "wide long"
    return (
        f'<div class="{kind}"><table{identity}>\n<thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _head_cell(words: str, kind: str, *, sortable: bool) -> str:
    shown = f'<button type="button">{escape(words)}</button>' if sortable else escape(words)
    return f'<th scope="col" class="{kind}">{shown}</th>'
