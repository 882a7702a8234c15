"""How a decision is told: to a reader, to a program, or to a job on GitHub Actions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import typer

from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.views.workflow_commands import Level, annotation, append_summary


class Format(StrEnum):
    """What ``--format`` takes."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One decision in all three forms.

    Args:
        text: A few plain lines.
        table: Plain data, written as JSON.
        annotations: Level and message of each; the title is the command's.
        markdown: For the summary page of a job.
    """

    text: str
    table: dict[str, Any]
    annotations: tuple[tuple[Level, str], ...]
    markdown: str


def state(said: Statement, *, title: str, form: Format) -> None:
    """Print a decision in the form that was asked for."""
    with output_checked():
        if form is Format.JSON:
            print(json.dumps(said.table, indent=2, allow_nan=False))
        elif form is Format.GITHUB:
            for level, message in said.annotations:
                print(annotation(level, title=title, message=message))
            if (failed := append_summary(said.markdown)) is not None:
                print(annotation("warning", title=title, message=failed))
        else:
            print(said.text)
        sys.stdout.flush()


@contextmanager
def refusals_stated(*, title: str, form: Format) -> Iterator[None]:
    """What cannot be judged is said in the form that was asked for as well, and then raised."""
    try:
        yield
    except UnusableInputError as error:
        why = one_line(error)
        if form is not Format.TEXT:
            refusal = Statement(
                text=why,
                table={"schema": 1, "verdict": "unusable", "why": why},
                annotations=(("error", f"could not be judged: {why}"),),
                markdown="",
            )
            state(refusal, title=title, form=form)
        raise


@contextmanager
def output_checked() -> Iterator[None]:
    """Says in one line where printing fails, as on a full disk.

    Whoever reads no further, as ``head`` does, has not been told everything: that is exit code 2,
    for of a verdict it must never become 0.
    """
    try:
        yield
    except OSError as error:
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        why = error.strerror or type(error).__name__
        raise UnusableInputError(f"what was found cannot be written ({why})") from error


FormatOption = typer.Option(
    "--format", help="text for people, json for programs, github for a job on GitHub Actions."
)
