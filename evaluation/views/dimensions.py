"""The conditions by which the page filters, and what a reader can switch between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradguard.evaluation.report import Failure, Report, Row
from gradguard.evaluation.views.text import escape

STAGE_LABELS = {"init": "untrained", "trained": "trained"}

FILTERS = (
    ("stage", "Model"),
    ("composition", "Composition"),
    ("batch_size", "Batch size"),
    ("rounds", "Rounds"),
)
"""Names as in a row, which are also those in a link to a view, and in words."""


def values(report: Report) -> dict[str, list[str]]:
    """The values that each condition takes, as text; sizes and rounds in their order."""
    every = (*report.rows, *report.failures)
    found: dict[str, list[Any]] = {
        name: list(dict.fromkeys(getattr(row, name) for row in every)) for name, _ in FILTERS
    }
    found["batch_size"].sort()
    found["rounds"].sort()
    return {name: [str(value) for value in some] for name, some in found.items()}


def codes(rows: Sequence[Row] | Sequence[Failure], known: dict[str, list[str]]) -> list[list[int]]:
    """For each row the places of its conditions among ``known``, for the page's script."""
    places = {name: {v: i for i, v in enumerate(some)} for name, some in known.items()}
    return [[places[name][str(getattr(row, name))] for name, _ in FILTERS] for row in rows]


def filter_form(report: Report) -> str:
    """A choice for every condition that has several values; not shown where none has.

    The form is there all the same: the switches beside the charts belong to it.
    """
    known, total = values(report), len(report.rows) + len(report.failures)
    sets = [
        _choices(name, title, [("", "all"), *((v, _label(name, v)) for v in known[name])])
        for name, title in FILTERS
        if len(known[name]) > 1
    ]
    reset = '<button type="reset">Show all</button>' if sets else ""
    count = f'<p role="status" aria-live="polite" id="count">{total} of {total} rows</p>'
    return (
        f'<form id="view"{"" if sets else " hidden"} '
        'aria-label="Which rows to show, in all charts and in the table">'
        f"{''.join(sets)}<div>{reset}{count}</div></form>"
    )


def _label(name: str, value: str) -> str:
    return STAGE_LABELS.get(value, value) if name == "stage" else value


def switch(name: str, title: str, choices: Sequence[tuple[str, str]]) -> str:
    """A choice that stands beside a chart and belongs to the form of the filters."""
    return _choices(name, title, choices, form=' form="view"')


def _choices(name: str, title: str, choices: Sequence[tuple[str, str]], form: str = "") -> str:
    labels = "".join(
        f'<label><input type="radio" name="{name}" value="{escape(value)}"{form}'
        f"{' checked' if place == 0 else ''}><span>{escape(words)}</span></label>"
        for place, (value, words) in enumerate(choices)
    )
    return f'<fieldset class="choice"><legend>{escape(title)}</legend>{labels}</fieldset>'
