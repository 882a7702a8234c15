"""What a job on GitHub Actions reads: annotations on its output, and the summary page of a job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable that names the file of a step's summary."""

Level = Literal["error", "warning", "notice"]


def annotation(level: Level, *, title: str, message: str) -> str:
    """One workflow command, on one line whatever is in its words.

    Guarantees:

    - what is in title or message can neither end the command nor begin another;
    - percent signs, line ends, and in a title colons and commas are shown as they are.

    >>> annotation("error", title="gate: a, b", message="100 %\\nof all: leaked")
    '::error title=gate%3A a%2C b::100 %25%0Aof all: leaked'
    """
    escaped = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={escaped}::{_escaped(message)}"


def _escaped(text: str) -> str:
    # The percent sign first: it is what the others are written with.
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    # Other ends of a line that some program on the way may know.
    return "".join(c if c.isprintable() else " " for c in text)


def append_summary(markdown: str, *, environment: Mapping[str, str] = os.environ) -> str | None:
    """Add to the job's summary, where there is one.

    Returns:
        Why it could not be written, or ``None``: a summary decides nothing, so that a full disk
        must not change what a gate says.
    """
    if not (name := environment.get(SUMMARY)):
        return None
    try:
        with Path(name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{markdown.rstrip()}\n\n")
    except (OSError, ValueError) as error:
        return f"{SUMMARY} could not be written ({getattr(error, 'strerror', None) or error})"
    return None
